-- Q18. Utilisation p50/p95 per model per day from mergeable window histograms?
SELECT time_bucket('1 day', window_at) AS day, model, percentile_merge(util_sketch, 0.5) AS p50, percentile_merge(util_sketch, 0.95) AS p95
FROM gpu_windows_1h WHERE window_at >= now() - interval '30 days' GROUP BY 1, 2 ORDER BY 1, 2;
