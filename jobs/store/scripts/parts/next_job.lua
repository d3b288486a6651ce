-- include: queue, running_limits
-- Choose the next job: the first one of the classes that a group can run, unless a limit keeps it from starting.

-- The id and place of an owner's first job in a class that never started.
local function first_of_owner(priority, requirement, owner)
  local key = requirement_owner_key(priority, requirement, owner)
  while true do
    local id, place = unpack(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES'))
    if not id then return nil end
    if not redis.call('ZSCORE', owner_queue_key(priority, owner), id) then
      redis.call('ZREM', key, id)
      if not redis.call('ZSCORE', queue_key(priority), id) then remove_from_depth(priority, requirement, id) end
    elseif not move_if_late(id, whole_number(read_fields(id, 'start_by_ms')[1]) or now) then
      return id, place
    end
  end
end

-- The first job of a class that never started and may start, its owner's virtual start time, and its place.
local function first_by_virtual_time(priority, requirement)
  local owners = class_owners_key(priority, requirement)
  while true do
    local entry, entered = unpack(redis.call('ZRANGE', owners, 0, 0, 'WITHSCORES'))
    if not entry then return nil end
    local owner = name_of_entry(entry)
    local id, place = first_of_owner(priority, requirement, owner)
    local start = id and redis.call('ZSCORE', backlogged_key(priority), owner)
    if not start then
      redis.call('ZREM', owners, entry)
    elseif start ~= entered or start_order_member(place, owner) ~= entry then
      redis.call('ZREM', owners, entry)
      redis.call('ZADD', owners, start, start_order_member(place, owner))
    else
      local limit = limit_on_start(id)
      if not limit then return id, tonumber(start), tonumber(place) end
      if limit == 'total' then return nil end
      redis.call('ZREM', owners, entry)
      hold_back(priority, requirement, owner)
    end
  end
end

-- The first requeued job of a class that may start, and its number.
local function first_requeued(priority, requirement)
  local key = class_requeued_key(priority, requirement)
  while true do
    local id, number = unpack(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES'))
    if not id then return nil end
    local is_requeued = redis.call('ZSCORE', requeued_key(priority), id)
    local limit = is_requeued and limit_on_start(id)
    if limit == 'total' then return nil end
    if is_requeued and not limit then return id, 0, tonumber(number) end
    redis.call('ZREM', key, id)
    if limit then
      hold_back(priority, requirement, read_fields(id, 'owner')[1], id)
    elseif not redis.call('ZSCORE', queue_key(priority), id) then
      remove_from_depth(priority, requirement, id)
    end
  end
end

-- The first of the jobs that `first_of_class` returns for these requirements.
local function first_of_classes(first_of_class, priority, requirements)
  local best, best_start, best_place
  for _, requirement in ipairs(requirements) do
    local id, start, place = first_of_class(priority, requirement)
    if id and (not best or start < best_start or start == best_start and place < best_place) then
      best, best_start, best_place = id, start, place
    end
  end
  return best
end

-- The first job that others set aside, that the caller can read, and that may start. Only the first few are looked at.
local MOST_SET_ASIDE = 20
local function first_set_aside(requirements)
  local set = as_set(requirements)
  for _, id in ipairs(redis.call('ZRANGE', SET_ASIDE, 0, MOST_SET_ASIDE - 1)) do
    local readable = is_readable(read_fields(id, 'unreadable_by')[1])
    if readable and has_requirement_in(set, id) and not limit_on_start(id) then return id end
  end
end

-- The id of the next job with one of these requirements, nil if none may start. Without requirements, the next of all.
local function next_job(requirements)
  requirements = requirements or redis.call('SMEMBERS', REQUIREMENTS)
  local set_aside_id = first_set_aside(requirements)
  if set_aside_id then return set_aside_id end
  local best, best_ms
  for _, priority in ipairs(PRIORITIES) do
    local id = first_of_classes(first_requeued, priority, requirements)
      or first_of_classes(first_by_virtual_time, priority, requirements)
    local time_ms = id and effective_time_of(id, priority)
    if id and (not best or time_ms < best_ms) then
      best, best_ms = id, time_ms
    end
  end
  return best
end
