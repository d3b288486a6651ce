-- include: clock, queue
-- What estimates for queued jobs need: the number of queued jobs and their work units; the number of groups; recent
-- runs; the number of running jobs, and for a sample of them task, work units, progress, ms since the claim and group;
-- for each requirement the number of queued jobs of each priority; and for each of the given jobs that is queued its
-- id, position, task, work units, priority and requirement. Jobs that the caller may not see are left out. `new` is a
-- record that may be submitted: the same for it.
local RUNNING = 'longcat:index:running'
local LARGEST_SAMPLE = 16
local function sample_of_running_jobs()
  local running = {}
  for _, id in ipairs(redis.call('ZRANDMEMBER', RUNNING, LARGEST_SAMPLE)) do
    local status, task, work_units, progress, claimed_ms, group = unpack(
      read_fields(id, 'status', 'task', 'work_units', 'progress', 'claimed_ms', 'group')
    )
    if status then
      if not is_whole(work_units) then work_units = NUMBERS.work_units end
      if not is_whole(claimed_ms) then claimed_ms = now end
      table.insert(running, {task or '', tonumber(work_units), progress, now - claimed_ms, group or ''})
    end
  end
  return running
end

local function depths()
  local found = {}
  for i, requirement in ipairs(redis.call('SMEMBERS', REQUIREMENTS)) do
    found[i] = {requirement}
    for _, priority in ipairs(PRIORITIES) do
      table.insert(found[i], redis.call('ZCARD', requirement_key(priority, requirement)))
    end
  end
  return found
end

local num_ahead = {} -- by priority
local queued = {}
for _, id in ipairs(given.ids) do
  local job = visible(id)
  if job and job.status == 'queued' then
    local priority = job.priority
    num_ahead[priority] = num_ahead[priority] or num_of_higher_priority(priority)
    local position = num_ahead[priority] + position_in_priority(job)
    table.insert(queued, {id, position, job.task, job.work_units, priority, job.requirement or ''})
  end
end
if given.new then
  local job = given.new
  job.created_ms, job.number = now, PLACES_PER_MS - 1
  set_deadline(job)
  local position = num_of_higher_priority(job.priority) + position_if_submitted(job)
  table.insert(queued, {job.id, position, job.task, job.work_units, job.priority, job.requirement})
end
if #queued == 0 then return false end
return {
  redis.call('ZCARD', 'longcat:index:queued'),
  redis.call('GET', 'longcat:queued_work_units'),
  redis.call('SCARD', 'longcat:groups'),
  redis.call('LRANGE', 'longcat:recent_runs', 0, -1),
  redis.call('ZCARD', RUNNING),
  sample_of_running_jobs(),
  depths(),
  queued,
}
