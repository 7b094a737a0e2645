-- Q1. What share of the fleet was allocated, busy, idle-while-allocated, free, down, each day this month?
SELECT time_bucket('1 day', window_at) AS day, model,
       sum(allocated_ms - allocated_idle_ms)/3.6e6 AS busy_gpu_h, sum(allocated_idle_ms)/3.6e6 AS idle_alloc_gpu_h,
       sum(free_ms)/3.6e6 AS free_gpu_h, sum(unhealthy_ms + drained_ms)/3.6e6 AS down_gpu_h,
       100.0*sum(allocated_ms)/nullif(sum(allocated_ms+free_ms+unhealthy_ms+drained_ms),0) AS allocated_pct
FROM gpu_windows_1h
WHERE window_at >= now() - interval '31 days' AND window_at < now() + interval '1 day'
GROUP BY 1, 2 ORDER BY 1, 2;
