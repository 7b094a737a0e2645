-- Q7. Queue wait p50/p95/p99 by job size and tenant?
SELECT r.n_gpus, r.tenant, count(*) AS placed, approx_percentile_cont(0.5) WITHIN GROUP (ORDER BY d.queue_ms)/1000.0 AS p50_s,
       approx_percentile_cont(0.95) WITHIN GROUP (ORDER BY d.queue_ms)/1000.0 AS p95_s, approx_percentile_cont(0.99) WITHIN GROUP (ORDER BY d.queue_ms)/1000.0 AS p99_s
FROM placement_decisions d JOIN placement_requests r USING (request_id)
WHERE d.outcome = 'placed' AND d.decided_at >= now() - interval '30 days' GROUP BY r.n_gpus, r.tenant ORDER BY p95_s DESC;
