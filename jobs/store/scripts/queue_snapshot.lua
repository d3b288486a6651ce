-- include: clock, queue
-- What estimates for queued jobs need: the number of queued jobs and their work units; the number of groups; recent
-- runs; for each running job its task, work units, progress and ms since its claim; and for each of the given jobs that
-- is queued its id, position, task and work units. Jobs that the caller may not see are left out.
local function running_jobs()
  local running = {}
  for _, id in ipairs(redis.call('ZRANGE', 'longcat:index:running', 0, -1)) do
    local job = read(id)
    if job then
      table.insert(running, {job.task, job.work_units, job.progress or false, now - job.claimed_ms})
    end
  end
  return running
end

local num_ahead = {} -- by priority
local queued = {}
for _, id in ipairs(given.ids) do
  local job = visible(id)
  if job and job.status == 'queued' then
    local priority = job.priority
    num_ahead[priority] = num_ahead[priority] or num_of_higher_priority(priority)
    local position = num_ahead[priority] + position_in_priority(id, priority)
    table.insert(queued, {id, position, job.task, job.work_units})
  end
end
if #queued == 0 then return false end
return {
  redis.call('ZCARD', 'longcat:index:queued'),
  redis.call('GET', 'longcat:queued_work_units'),
  redis.call('SCARD', 'longcat:groups'),
  redis.call('LRANGE', 'longcat:recent_runs', 0, -1),
  running_jobs(),
  queued,
}
