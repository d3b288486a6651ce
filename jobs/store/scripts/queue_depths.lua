-- include: clock, queue
-- For each priority: the number of queued jobs, and for how many ms the first of them has waited.
local depths = {}
for i, priority in ipairs(PRIORITIES) do
  local key = queue_key(priority)
  local id = redis.call('ZRANGE', key, 0, 0)[1]
  local job = id and read(id)
  depths[i] = {priority, redis.call('ZCARD', key), job and now - job.created_ms or 0}
end
return depths
