-- include: queue
-- One ticket for each queued job, none if no job may start.
return next_job() and redis.call('ZCARD', 'longcat:index:queued') or 0
