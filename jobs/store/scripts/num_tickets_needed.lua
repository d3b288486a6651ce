-- include: queue
-- One ticket for each queued job, none if no job may start. All jobs that were set aside together get one, which tells
-- when a worker that can read them has come.
local num_set_aside = redis.call('ZCARD', SET_ASIDE)
return next_job() and redis.call('ZCARD', 'longcat:index:queued') - num_set_aside + math.min(1, num_set_aside) or 0
