-- include: clock, running_limits, groups
-- Preemption. A running job of low priority is asked to stop for a queued job of high priority that has waited long
-- enough and that no idle group will take, unless it started because of its own long wait. At most one job is asked for
-- each queued job: the queued job names it in `preempts`, and the running job names the queued one in
-- `preempt_requested`.

-- The status that a group published, {} if the group is gone.
local function group_status(name)
  local status = name and redis.call('GET', 'longcat:group:' .. name)
  return decode(status)
end

-- The number of idle groups in the pool of this group.
local function num_idle_groups(group)
  return redis.call('ZCOUNT', idle_groups_key(group_status(group).pool), redis.call('TIME')[1] * 1000, '+inf')
end

-- The id of the first queued job for which `job` should stop. Passed over are jobs that its group cannot run, that idle
-- groups will take, or for which another job was asked to stop. Only the first jobs are looked at.
local MOST_URGENT = 50
local function job_to_preempt_for(job, after_ms)
  local urgent = redis.call('ZRANGE', queue_key('high'), 0, MOST_URGENT - 1)
  if #urgent == 0 then return nil end
  local num_idle = num_idle_groups(job.group)
  local requirements = given.requirements and as_set(given.requirements)
  for _, id in ipairs(urgent) do
    local created_ms, preempts = unpack(read_fields(id, 'created_ms', 'preempts'))
    created_ms = whole_number(created_ms)
    local waited_ms = created_ms and now - created_ms
    if waited_ms and waited_ms < after_ms then return nil end -- later ones have waited even less
    local can_run = not requirements or has_requirement_in(requirements, id)
    if waited_ms and can_run and not limit_on_start(id, job) then
      if num_idle == 0 and not preempts then return id end
      num_idle = math.max(0, num_idle - 1)
    end
  end
end

-- Check that a job of low priority started because it had waited so long. Preemption would make it wait again.
local function started_by_ageing(job)
  local waited_ms = job.claimed_ms - (whole_number(job.queued_ms) or job.created_ms)
  local ageing_ms = whole_number(job.ageing_ms)
  return ageing_ms and waited_ms >= 2 * ageing_ms
end

-- Request preemption of a running job if that is due. A request stands: the group may have stopped already.
local function request_preemption(job, after_ms)
  if job.preempt_requested then return true end
  local has_gpus = job.status == 'running' and group_status(job.group).job == job.id
  local may_stop = job.priority == 'low' and has_gpus and not started_by_ageing(job)
  local id = may_stop and job_to_preempt_for(job, after_ms)
  if not id then return false end
  redis.call('HSET', record_key(id), 'preempts', job.id)
  write(job, {preempt_requested = id})
  return true
end
