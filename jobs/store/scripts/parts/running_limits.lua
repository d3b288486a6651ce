-- include: classes
-- Limits on the number of running jobs, of one owner and of all.
--
-- An entry that the limit of its owner keeps from starting is held back: it leaves its class until a job of that owner
-- stops running. So a claim does not look at it again and again.

-- Owners with entries that are held back, by the latest time of their release; and the entries of one owner.
local HELD_BACK = 'longcat:queue:held_back'
local function held_back_key(owner)
  return HELD_BACK .. ':' .. owner
end

-- The limit on running jobs that keeps a queued job from starting, `owner` or `total`; nil if it may start. Jobs carry
-- the limits. If `leaving` is given, that running job is about to stop and does not count. A job without a record may
-- start: the claim removes it from the queue.
local function limit_on_start(id, leaving)
  local owner, owner_limit, total_limit = unpack(read_fields(id, 'owner', 'owner_running_jobs', 'total_running_jobs'))
  if not owner then return nil end
  local num_leaving = leaving and 1 or 0
  local num_leaving_of_owner = leaving and leaving.owner == owner and 1 or 0
  local function is_reached(limit, key, num_not_counted)
    local bound = whole_number(limit)
    return bound and has_at_least(bound + num_not_counted, key)
  end
  if is_reached(total_limit, index_key('running'), num_leaving) then return 'total' end
  if is_reached(owner_limit, index_key('running', owner), num_leaving_of_owner) then return 'owner' end
end

-- Remember that an entry has left its class: a requeued job, or an owner if there is no `id`.
local LONGEST_HELD_BACK_MS = 5000
local function hold_back(priority, requirement, owner, id)
  redis.call('SADD', held_back_key(owner), cjson.encode({priority, requirement, id}))
  redis.call('ZADD', HELD_BACK, 'NX', now + LONGEST_HELD_BACK_MS, owner)
end

-- Return the entries of an owner to their classes.
local function release_held_back(owner)
  local entries = redis.call('SMEMBERS', held_back_key(owner))
  for _, entry in ipairs(entries) do
    local priority, requirement, id = unpack(cjson.decode(entry))
    if not id then
      enter_owner(priority, requirement, owner)
    else
      local number = redis.call('ZSCORE', requirement_key(priority, requirement), id)
      if number then redis.call('ZADD', class_requeued_key(priority, requirement), number, id) end
    end
  end
  redis.call('DEL', held_back_key(owner))
  redis.call('ZREM', HELD_BACK, owner)
end

-- Return entries to their classes that have been held back for long. A job that stops does not return them if its
-- record is gone, or if that names another owner than it had. A claim holds them back again if the limit still applies.
local function release_long_held_back()
  for _, owner in ipairs(due(HELD_BACK)) do release_held_back(owner) end
end
