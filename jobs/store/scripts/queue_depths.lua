-- include: next_job, allow_when_full
-- For each priority and requirement of queued jobs: the number of jobs, how many of them a limit on running jobs keeps
-- from starting, the work units of all, and the longest time in ms since one of the others was queued. The cost grows
-- with the number of running jobs, because limits depend on them, but not with that of queued jobs.
local RUNNING = 'longcat:index:running'
local MOST_LOOKED_AT = 50

-- The set of owners at their limit, and whether the limit for all owners is reached. Running jobs carry the limits; of
-- several, that of the job submitted last counts.
local function limits_reached()
  local at_limit, total_is_reached = {}, false
  local num_running = redis.call('ZCARD', RUNNING)
  for _, id in ipairs(redis.call('ZRANGE', RUNNING, 0, -1)) do
    local owner, owner_limit, total_limit = unpack(
      read_fields(id, 'owner', 'owner_running_jobs', 'total_running_jobs')
    )
    if owner then
      owner_limit, total_limit = whole_number(owner_limit), whole_number(total_limit)
      at_limit[owner] = owner_limit and has_at_least(owner_limit, index_key('running', owner)) or nil
      total_is_reached = total_limit and num_running >= total_limit
    end
  end
  return at_limit, total_is_reached
end

local at_limit, total_is_reached = limits_reached()

-- The number of requeued jobs that are held back, by the key of their class.
local held_requeued = {}
for owner in pairs(at_limit) do
  for _, entry in ipairs(redis.call('SMEMBERS', held_back_key(owner))) do
    local priority, requirement, id = unpack(cjson.decode(entry))
    local key = requirement_key(priority, requirement)
    if id and redis.call('ZSCORE', key, id) then held_requeued[key] = (held_requeued[key] or 0) + 1 end
  end
end

local function num_held(priority, requirement, num_jobs)
  if total_is_reached then return num_jobs end
  local num = held_requeued[requirement_key(priority, requirement)] or 0
  for owner in pairs(at_limit) do
    num = num + redis.call('ZCARD', requirement_owner_key(priority, requirement, owner))
  end
  for _, id in ipairs(redis.call('ZRANGE', class_requeued_key(priority, requirement), 0, MOST_LOOKED_AT - 1)) do
    if at_limit[read_fields(id, 'owner')[1]] then num = num + 1 end
  end
  return math.min(num, num_jobs)
end

local function waited_ms(created_ms, queued_ms)
  return math.max(0, now - queued_since_ms(created_ms, queued_ms))
end

-- The first jobs are looked at until one has waited since its submission: the later ones were submitted later. If all
-- of the first ones are held or were requeued, those of the owners who are next are looked at.
local function longest_wait_ms(priority, requirement)
  local longest_ms = 0
  for _, id in ipairs(redis.call('ZRANGE', requirement_key(priority, requirement), 0, MOST_LOOKED_AT - 1)) do
    local owner, created_ms, queued_ms = unpack(read_fields(id, 'owner', 'created_ms', 'queued_ms'))
    if owner and not at_limit[owner] then
      longest_ms = math.max(longest_ms, waited_ms(created_ms, queued_ms))
      if not queued_ms then return longest_ms end
    end
  end
  for _, entry in ipairs(redis.call('ZRANGE', class_owners_key(priority, requirement), 0, MOST_LOOKED_AT - 1)) do
    local owner = name_of_entry(entry)
    local id = not at_limit[owner] and first_of_owner(priority, requirement, owner)
    if id then longest_ms = math.max(longest_ms, waited_ms(read_fields(id, 'created_ms')[1])) end
  end
  return longest_ms
end

local depths = {}
for _, requirement in ipairs(redis.call('SMEMBERS', REQUIREMENTS)) do
  for _, priority in ipairs(PRIORITIES) do
    local num_jobs = depth_of(priority, requirement)
    if num_jobs > 0 then
      local work_units = tonumber(redis.call('HGET', class_work_units_key(priority), requirement) or 0)
      local num = num_held(priority, requirement, num_jobs)
      local oldest_ms = num < num_jobs and longest_wait_ms(priority, requirement) or 0
      table.insert(depths, {priority, requirement, num_jobs, num, work_units, oldest_ms})
    end
  end
end
return depths
