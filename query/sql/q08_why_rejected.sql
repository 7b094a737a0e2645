-- Q8. Why were requests rejected or kept waiting, by reason and hour?
SELECT time_bucket('1 hour', decided_at) AS hour, reason, count(*) AS attempts, count(DISTINCT request_id) AS requests, avg(hosts_feasible) AS feasible_hosts
FROM placement_decisions WHERE outcome IN ('rejected','deferred') AND decided_at >= now() - interval '1 day' GROUP BY 1, 2 ORDER BY 1, 3 DESC;
