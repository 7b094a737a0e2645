-- Q25. Can I trust this answer: coverage, late data and freshness of the period?
SELECT time_bucket('1 hour', window_at) AS hour, count(DISTINCT device_key) AS gpus_seen, 100.0*sum(covered_ms)/(count(*)*60000.0) AS covered_pct,
       sum(late) AS late, count(*) FILTER (WHERE NOT final) AS provisional_windows, max(window_at) AS newest
FROM gpu_windows_1m WHERE window_at >= now() - interval '1 day' GROUP BY 1 ORDER BY 1;
