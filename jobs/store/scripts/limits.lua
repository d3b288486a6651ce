-- What an owner, and all together, may have at a time. A limit that is not given is none.

local DAY_MS = 86400000
local FULL_QUEUE_RETRY_S = 15

local function reached(limit, bound, retry_s)
  return redis.error_reply(string.format('LIMIT_REACHED %s %s %d', limit, bound, math.max(1, math.ceil(retry_s))))
end

local function stored_keys(owner)
  local today = 'longcat:stored:' .. math.floor(now / DAY_MS)
  return {today .. ':' .. owner, today}
end

-- Why one more job is refused, nil if it is not.
local function over_limit(job, limits)
  for i, whose in ipairs({'owner', 'total'}) do
    local queued = redis.call('ZCARD', index_keys('queued', job.owner)[3 - i])
    local bound = limits[whose .. '_queued_jobs']
    if bound and queued >= bound then return reached(whose .. '_queued_jobs', bound, FULL_QUEUE_RETRY_S) end
  end
  for i, whose in ipairs({'owner', 'total'}) do
    local stored = redis.call('GET', stored_keys(job.owner)[i]) or 0
    local bound = limits[whose .. '_input_bytes_per_day']
    if bound and stored + given.input_bytes > bound then
      return reached(whose .. '_input_bytes_per_day', bound, (DAY_MS - now % DAY_MS) / 1000)
    end
  end
end

local function count_input_bytes(job)
  if given.input_bytes == 0 then return end
  for _, key in ipairs(stored_keys(job.owner)) do
    redis.call('INCRBY', key, given.input_bytes)
    redis.call('PEXPIRE', key, 2 * DAY_MS)
  end
end

-- Whether a queued job may begin as far as the limits on running jobs go, which it brought with it. A running job
-- that is about to let go may be named: it does not count.
local function may_begin(id, leaving)
  local owner, of_owner, of_all = unpack(
    redis.call('HMGET', record_key(id), 'owner', 'owner_running_jobs', 'total_running_jobs')
  )
  local running = index_keys('running', owner)
  local less_of_all = leaving and 1 or 0
  local less_of_owner = leaving and leaving.owner == owner and 1 or 0
  return not (of_all and redis.call('ZCARD', running[1]) - less_of_all >= tonumber(of_all))
    and not (of_owner and redis.call('ZCARD', running[2]) - less_of_owner >= tonumber(of_owner))
end

