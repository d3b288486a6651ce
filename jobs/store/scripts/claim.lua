-- include: transitions, next_job, allow_when_full
-- Claim the next job with one of the `requirements`. If the reply is lost, the same token gets the same claim. Orders
-- above `order_version` are set aside: `reader` cannot read them.

local function next_readable_job()
  while true do
    local id = next_job(given.requirements)
    if not id then return nil end
    local job = read(id)
    if not job then
      forget(id)
    elseif job.status ~= 'queued' then -- its record names another owner or priority than the queue
      dequeue_unknown(id)
    elseif tonumber(job.order_version or 0) > given.order_version or not is_readable(job.unreadable_by) then
      set_aside(job, given.reader)
    else
      return job
    end
  end
end

local claim_key = 'longcat:claims:' .. given.token
local claimed = redis.call('GET', claim_key)
local job = claimed and read(claimed)
if not (job and HELD[job.status] and job.claim_token == given.token) then
  move_late_jobs()
  job = next_readable_job()
  if not job then return false end
  local id = job.id
  dequeue_to_start(job)
  if not job.started_ms then observe('wait_seconds', job.priority, (now - job.created_ms) / 1000) end
  redis.call('SET', claim_key, id, 'PX', given.lease_ms)
  redis.call('ZADD', 'longcat:leases', now + given.lease_ms, id)
  set_status(job, 'running', {
    id = id,
    attempt = job.attempt + 1,
    fence = job.fence + 1,
    claim_token = given.token,
    group = given.group,
    num_gpus = given.num_gpus,
    lease_ms = given.lease_ms,
    claimed_ms = now,
    paused_ms = false,
    started_ms = job.started_ms or now,
    lease_grace = false,
  })
end
return redis.call('HGETALL', record_key(job.id))
