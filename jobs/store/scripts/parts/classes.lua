-- include: queue_order
-- Classes of queued jobs: the jobs with equal requirements. A group looks for its next job only in the classes that it
-- can run, and does not pass over other jobs.
--
-- A class has its own order of owners and of requeued jobs, so a claim looks at the first entry of each class only. The
-- entries of owners are checked when they are looked at: the virtual start time of an owner grows with the jobs of all
-- classes, so an entry may be too low, but never too high. When it falls, all entries of the owner are changed.
--
-- Jobs whose record is gone are removed when they are found in a class.

local REQUIREMENTS = 'longcat:requirements'

-- Queued jobs of all owners with this requirement.
local function requirement_key(priority, requirement)
  return queue_key(priority) .. ':requirement:' .. requirement
end

-- The work units of the queued jobs of one priority, by requirement.
local function class_work_units_key(priority)
  return queue_key(priority) .. ':work_units'
end

-- Jobs of one owner with this requirement that never started, by place.
local function requirement_owner_key(priority, requirement, owner)
  return requirement_key(priority, requirement) .. ':owner:' .. owner
end

-- Owners with such jobs, as `<place of the first one>:<owner>` by virtual start time.
local function class_owners_key(priority, requirement)
  return requirement_key(priority, requirement) .. ':owners'
end

-- Requeued jobs with this requirement, by number.
local function class_requeued_key(priority, requirement)
  return requirement_key(priority, requirement) .. ':requeued'
end

-- Put an owner into the order of a class, at the place of their first job there. Nothing happens if there is none.
local function enter_owner(priority, requirement, owner)
  local first, place = unpack(
    redis.call('ZRANGE', requirement_owner_key(priority, requirement, owner), 0, 0, 'WITHSCORES')
  )
  local start = first and owner_start(priority, owner)
  if start then
    redis.call('ZADD', class_owners_key(priority, requirement), start, start_order_member(place, owner))
  end
end

-- Add a job that never started to those of its owner in a class.
local function add_to_owner_jobs(job)
  local priority, requirement, owner = job.priority, job.requirement, job.owner
  local owner_jobs = requirement_owner_key(priority, requirement, owner)
  local place = redis.call('ZSCORE', owner_queue_key(priority, owner), job.id) or place_of(job)
  local first, first_place = unpack(redis.call('ZRANGE', owner_jobs, 0, 0, 'WITHSCORES'))
  redis.call('ZADD', owner_jobs, place, job.id)
  if not first then
    enter_owner(priority, requirement, owner)
  elseif tonumber(place) < tonumber(first_place) then
    local entry = start_order_member(first_place, owner)
    if redis.call('ZREM', class_owners_key(priority, requirement), entry) == 1 then -- it is not held back
      enter_owner(priority, requirement, owner)
    end
  end
end

local function add_to_class(job)
  local priority, requirement = job.priority, job.requirement
  redis.call('SADD', REQUIREMENTS, requirement)
  if redis.call('ZADD', requirement_key(priority, requirement), job.number, job.id) == 1 then
    redis.call('HINCRBY', class_work_units_key(priority), requirement, job.work_units)
  end
  if job.started_ms then
    redis.call('ZADD', class_requeued_key(priority, requirement), job.number, job.id)
  else
    add_to_owner_jobs(job)
  end
end

-- Take a job that never started out of its owner's jobs in a class. If it was the first of them, the next one gives the
-- owner a new place, unless they are held back.
local function remove_from_owner_jobs(priority, requirement, owner, id)
  local owner_jobs = requirement_owner_key(priority, requirement, owner)
  local first, place = unpack(redis.call('ZRANGE', owner_jobs, 0, 0, 'WITHSCORES'))
  redis.call('ZREM', owner_jobs, id)
  if first ~= id then return end
  local entry = start_order_member(place, owner)
  if redis.call('ZREM', class_owners_key(priority, requirement), entry) == 1 then
    enter_owner(priority, requirement, owner)
  end
end

-- Count a job no longer among those with a requirement, and take off its work units. Those of a job whose record was
-- removed in the meantime are not known, so they begin at 0 again when the class is empty.
local function remove_from_depth(priority, requirement, id)
  if redis.call('ZREM', requirement_key(priority, requirement), id) == 0 then return end
  if redis.call('EXISTS', requirement_key(priority, requirement)) == 0 then
    redis.call('HDEL', class_work_units_key(priority), requirement)
  else
    local work_units = whole_number(read_fields(id, 'work_units')[1]) or NUMBERS.work_units
    redis.call('HINCRBY', class_work_units_key(priority), requirement, -work_units)
  end
end

-- Remove a job from its class, and the class if that was its last job.
local function remove_from_class(job)
  local requirement = job.requirement
  remove_from_owner_jobs(job.priority, requirement, job.owner, job.id)
  redis.call('ZREM', class_requeued_key(job.priority, requirement), job.id)
  remove_from_depth(job.priority, requirement, job.id)
  local is_empty = true
  for _, priority in ipairs(PRIORITIES) do
    if redis.call('EXISTS', requirement_key(priority, requirement)) == 1 then
      is_empty = false
    else
      redis.call('DEL', class_owners_key(priority, requirement), class_requeued_key(priority, requirement))
    end
  end
  if is_empty then redis.call('SREM', REQUIREMENTS, requirement) end
end

-- The number of queued jobs of one priority with this requirement.
local function depth_of(priority, requirement)
  local key = requirement_key(priority, requirement)
  while true do
    local id = redis.call('ZRANGE', key, 0, 0)[1]
    if not id or redis.call('ZSCORE', queue_key(priority), id) then return redis.call('ZCARD', key) end
    remove_from_depth(priority, requirement, id)
  end
end

local function as_set(requirements)
  local set = {}
  for _, requirement in ipairs(requirements) do set[requirement] = true end
  return set
end

-- Check that a queued job has one of these requirements, or none, because its record is gone or damaged.
local function has_requirement_in(set, id)
  local requirement = read_fields(id, 'requirement')[1]
  return not requirement or set[requirement] or false
end
