-- Q17. Memory over-ask: reserved against peak used, by workload (right-size)?
SELECT r.workload, count(DISTINCT l.lease_id) AS leases, approx_percentile_cont(0.95) WITHIN GROUP (ORDER BY m.peak_bytes)/1073741824.0 AS p95_peak_gib,
       avg(r.memory_per_gpu_bytes)/1073741824.0 AS asked_gib
FROM leases l JOIN placement_requests r USING (request_id)
JOIN (SELECT lease_id, max(memory_used_bytes_max) AS peak_bytes FROM gpu_windows_1h WHERE lease_id IS NOT NULL AND window_at >= now() - interval '30 days' GROUP BY lease_id) m ON m.lease_id = l.lease_id
GROUP BY r.workload HAVING count(DISTINCT l.lease_id) >= 3 ORDER BY asked_gib - p95_peak_gib DESC;
