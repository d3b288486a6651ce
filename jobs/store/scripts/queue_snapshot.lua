-- include: clock, queue
-- What an estimate for a queued job needs, nil if it is not queued: its position, task and work units; the number of
-- queued jobs and their work units; the names of all groups; recent runs; and for each running job its task, work
-- units, progress, ms since its claim and group. If `requirements` are given, the position counts at most the jobs
-- that have one of them: those that wait for the same groups.
local job = visible(given.id)
if not job or job.status ~= 'queued' then return false end
local running = {}
for _, id in ipairs(redis.call('ZRANGE', 'longcat:index:running', 0, -1)) do
  local other = read(id)
  if other then
    local run_ms = now - other.claimed_ms
    table.insert(running, {other.task, other.work_units, other.progress or false, run_ms, other.group or ''})
  end
end
local position = queue_position(job)
if given.requirements and job.requirement then
  local num_rivals = 0
  for _, requirement in ipairs(given.requirements) do
    for _, priority in ipairs(PRIORITIES) do
      num_rivals = num_rivals + depth_of(priority, requirement)
      if priority == job.priority then break end
    end
  end
  position = math.min(position, math.max(1, num_rivals))
end
return {
  position,
  job.task,
  job.work_units,
  redis.call('ZCARD', 'longcat:index:queued'),
  redis.call('GET', 'longcat:queued_work_units'),
  redis.call('SMEMBERS', 'longcat:groups'),
  redis.call('LRANGE', 'longcat:recent_runs', 0, -1),
  running,
}
