-- include: clock, classes, positions
-- What estimates for queued jobs need: the number of queued jobs and their work units; the number of groups; recent
-- runs; the number of running jobs, and for a sample of them task, work units, progress, ms since the claim and group;
-- for each requirement the number of queued jobs of each priority; and for each of the given jobs that is queued its
-- id, the numbers of jobs of each priority before it, task, work units, priority, requirement and 1. Jobs that the
-- caller may not see are left out. `new` is a record that may be submitted: the same for it, with 0 instead of 1.
local RUNNING = 'longcat:index:running'
local LARGEST_SAMPLE = 16
local function sample_of_running_jobs()
  local running = {}
  for _, id in ipairs(redis.call('ZRANDMEMBER', RUNNING, LARGEST_SAMPLE)) do
    local status, task, work_units, progress, claimed_ms, group = unpack(
      read_fields(id, 'status', 'task', 'work_units', 'progress', 'claimed_ms', 'group')
    )
    if status then
      work_units, claimed_ms = whole_number(work_units) or NUMBERS.work_units, whole_number(claimed_ms) or now
      table.insert(running, {task or '', work_units, progress, now - claimed_ms, group or ''})
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

local queued = {}
local function add(job, nums, is_queued)
  table.insert(queued, {job.id, nums, job.task, job.work_units, job.priority, job.requirement, is_queued})
end

for _, id in ipairs(given.ids) do
  local job = visible(id)
  if job and job.status == 'queued' then add(job, nums_before(job, position_in_priority(job)), 1) end
end
if given.new then
  local job = given.new
  job.created_ms, job.number = now, US_PER_MS - 1
  set_deadline(job)
  set_submission_delay(job)
  local time_ms = effective_time_ms(job.priority, now, job.ageing_ms)
  add(job, nums_before(job, position_if_submitted(job), time_ms), 0)
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
