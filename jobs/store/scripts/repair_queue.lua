-- include: queue, running_limits, allow_when_full
-- Repair what scripts of release 0.2.0 do not keep: the requeued jobs of the classes, the start order, the effective
-- times and the last submissions. If the size of one of the last three is wrong, some of its members are looked at: at
-- the end where those scripts change most, and at random. So a repair takes no longer in a long queue, and is repeated
-- until the sizes agree. Until then, positions are estimates.
local MOST_LOOKED_AT = 100

-- Add jobs to their classes that those scripts requeued.
local function list_missing_requeued(priority)
  for _, id in ipairs(redis.call('ZRANGE', requeued_key(priority), 0, MOST_LOOKED_AT - 1)) do
    local requirement, owner = unpack(read_fields(id, 'requirement', 'owner'))
    local is_listed = redis.call('ZSCORE', SET_ASIDE, id)
      or requirement and redis.call('ZSCORE', class_requeued_key(priority, requirement), id)
      or requirement and redis.call(
        'SISMEMBER', held_back_key(owner or ''), cjson.encode({priority, requirement, id})
      ) == 1
    local job = not is_listed and read(id)
    if job and job.status == 'queued' and job.started_ms and job.priority == priority then
      if not requirement then write(job, {requirement = ''}) end
      add_to_class(job)
    end
  end
end

local function sample(key, first, last)
  local members = redis.call('ZRANGE', key, first, last)
  for _, member in ipairs(redis.call('ZRANDMEMBER', key, MOST_LOOKED_AT)) do members[#members + 1] = member end
  return members
end

local function first_ones(key)
  return sample(key, 0, MOST_LOOKED_AT - 1)
end

local function last_ones(key)
  return sample(key, -MOST_LOOKED_AT, -1)
end

-- The member that a job has in the start order, and its owner; nil if it has none.
local function expected_start_order_member(priority, id)
  local owner = read_fields(id, 'owner')[1]
  local place = owner and redis.call('ZSCORE', owner_queue_key(priority, owner), id)
  if place then return start_order_member(place, id), owner end
end

-- A job that is missing enters the start order as if the owner's jobs before it were of its size.
local function repair_start_order(priority)
  local order, queue = start_order_key(priority), queue_key(priority)
  local num_expected = redis.call('ZCARD', queue) - redis.call('ZCARD', requeued_key(priority))
  if redis.call('ZCARD', order) == num_expected then return end
  for _, member in ipairs(first_ones(order)) do
    local expected = expected_start_order_member(priority, name_of_entry(member))
    if member ~= expected then redis.call('ZREM', order, member) end
  end
  for _, id in ipairs(last_ones(queue)) do
    local member, owner = expected_start_order_member(priority, id)
    if member and not redis.call('ZSCORE', order, member) then
      local work_units, weight = unpack(read_fields(id, 'work_units', 'weight'))
      local rank = redis.call('ZRANK', owner_queue_key(priority, owner), id)
      local charged = rank * charge(whole_number(work_units) or NUMBERS.work_units, weight)
      redis.call('ZADD', order, first_start(priority, owner) + charged, member)
    end
  end
end

local function repair_effective_times(priority)
  local times, queue = effective_times_key(priority), queue_key(priority)
  if redis.call('ZCARD', times) == redis.call('ZCARD', queue) then return end
  for _, id in ipairs(first_ones(times)) do
    if not redis.call('ZSCORE', queue, id) then redis.call('ZREM', times, id) end
  end
  for _, id in ipairs(last_ones(queue)) do
    if not redis.call('ZSCORE', times, id) then redis.call('ZADD', times, effective_time_of(id, priority), id) end
  end
end

local function forget_last_submissions(priority)
  local key = last_submission_key(priority)
  if redis.call('HLEN', key) <= redis.call('ZCARD', backlogged_key(priority)) then return end
  for _, owner in ipairs(redis.call('HRANDFIELD', key, MOST_LOOKED_AT)) do
    if not owner_start(priority, owner) then redis.call('HDEL', key, owner) end
  end
end

for _, priority in ipairs(PRIORITIES) do
  list_missing_requeued(priority)
  repair_start_order(priority)
  repair_effective_times(priority)
  forget_last_submissions(priority)
end
