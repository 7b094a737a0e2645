-- Q2. Which tenants held GPUs without using them, and what did it cost?
WITH hc AS (SELECT host, max(cost_per_gpu_hour_micros)/1e6 AS usd FROM hosts WHERE valid_to IS NULL GROUP BY host)
SELECT w.tenant, sum(w.allocated_ms)/3.6e6 AS alloc_gpu_h, sum(w.allocated_idle_ms)/3.6e6 AS idle_gpu_h,
       100.0*sum(w.allocated_idle_ms)/nullif(sum(w.allocated_ms),0) AS idle_pct, sum(w.allocated_idle_ms/3.6e6*hc.usd) AS idle_usd
FROM gpu_windows_1h w LEFT JOIN hc ON hc.host = w.host
WHERE w.window_at >= now() - interval '7 days' AND w.tenant IS NOT NULL
GROUP BY w.tenant ORDER BY idle_usd DESC NULLS LAST LIMIT 20;
