-- Q19. Which GPUs throttle (thermal or power) and how much capacity is lost?
SELECT d.host, d.gpu_index, d.model, sum(w.throttle_thermal_ms)/60000.0 AS thermal_min, sum(w.throttle_power_ms)/60000.0 AS power_min, max(w.temperature_c_max) AS temp_max
FROM gpu_windows_1h w JOIN devices d ON d.device_key = w.device_key AND d.valid_to IS NULL
WHERE w.window_at >= now() - interval '7 days' GROUP BY 1,2,3 HAVING sum(w.throttle_thermal_ms) > 600000 ORDER BY thermal_min DESC LIMIT 50;
