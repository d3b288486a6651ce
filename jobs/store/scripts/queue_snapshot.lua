-- include: clock, queue
-- What an estimate for a queued job needs, nil if it is not queued: its position, task and work units; the number of
-- queued jobs and their work units; the number of groups; recent runs; and for each running job its task, work units,
-- progress and ms since its claim.
local job = visible(given.id)
if not job or job.status ~= 'queued' then return false end
local running = {}
for _, id in ipairs(redis.call('ZRANGE', 'longcat:index:running', 0, -1)) do
  local other = read(id)
  if other then
    table.insert(running, {other.task, other.work_units, other.progress or false, now - other.claimed_ms})
  end
end
return {
  queue_position(job),
  job.task,
  job.work_units,
  redis.call('ZCARD', 'longcat:index:queued'),
  redis.call('GET', 'longcat:queued_work_units'),
  redis.call('SCARD', 'longcat:groups'),
  redis.call('LRANGE', 'longcat:recent_runs', 0, -1),
  running,
}
