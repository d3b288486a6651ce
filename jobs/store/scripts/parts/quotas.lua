-- include: clock, record, gpu_time
-- Limits for each owner, and for all owners together. A limit that is not given does not apply.

-- Limits on numbers of jobs by the index that counts them, and the time after which a refused client may try again.
local JOB_LIMITS = {
  {name = 'queued_jobs', status = 'queued', retry_s = 15},
  {name = 'stored_jobs', status = 'all', retry_s = 60},
}

local function limit_reached(limit, bound, retry_s)
  return redis.error_reply(string.format('LIMIT_REACHED %s %s %d', limit, bound, math.max(1, math.ceil(retry_s))))
end

local SCOPES = {'owner', 'total'}

-- The counter of the bytes of inputs that were stored today, for one owner or for all.
local function input_bytes_key(owner)
  return 'longcat:input_bytes:' .. math.floor(now / DAY_MS) .. (owner and ':' .. owner or '')
end

-- The error if so many jobs of this owner and size would exceed a limit, nil if they would not.
local function check_quotas(job, num_jobs, limits)
  for _, limit in ipairs(JOB_LIMITS) do
    for _, scope in ipairs(SCOPES) do
      local name = scope .. '_' .. limit.name
      local index = index_key(limit.status, scope == 'owner' and job.owner or nil)
      if limits[name] and has_at_least(limits[name] - num_jobs + 1, index) then
        return limit_reached(name, limits[name], limit.retry_s)
      end
    end
  end
  for _, scope in ipairs(SCOPES) do
    local stored = redis.call('GET', input_bytes_key(scope == 'owner' and job.owner or nil)) or 0
    local bound = limits[scope .. '_input_bytes_per_day']
    if bound and stored + given.input_bytes > bound then
      return limit_reached(scope .. '_input_bytes_per_day', bound, (DAY_MS - now % DAY_MS) / 1000)
    end
  end
  local budget_s = limits.owner_gpu_s_per_day
  if budget_s and budgeted_gpu_ms(job.owner) + num_jobs * expected_gpu_ms(job) > budget_s * 1000 then
    return limit_reached('owner_gpu_s_per_day', budget_s, (DAY_MS - now % DAY_MS) / 1000)
  end
end

local function count_input_bytes(job)
  if given.input_bytes == 0 then return end
  for _, key in ipairs({input_bytes_key(job.owner), input_bytes_key()}) do
    redis.call('INCRBY', key, given.input_bytes)
    redis.call('PEXPIRE', key, 2 * DAY_MS)
  end
end
