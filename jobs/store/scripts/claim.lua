-- include: transitions
-- Claim the next job with one of the `requirements`. If the reply is lost, the same token gets the same claim.
local claim_key = 'longcat:claims:' .. given.token
local claimed = redis.call('GET', claim_key)
local job = claimed and read(claimed)
if not (job and HELD[job.status] and job.claim_token == given.token) then
  local id = next_job(given.requirements)
  if not id then return false end
  job = read(id)
  dequeue_to_start(job)
  if not job.started_ms then observe('wait_seconds', job.priority, (now - job.created_ms) / 1000) end
  redis.call('SET', claim_key, id, 'PX', given.lease_ms)
  redis.call('ZADD', 'longcat:leases', now + given.lease_ms, id)
  set_status(job, 'running', {
    attempt = job.attempt + 1,
    fence = job.fence + 1,
    claim_token = given.token,
    group = given.group,
    lease_ms = given.lease_ms,
    claimed_ms = now,
    started_ms = job.started_ms or now,
    lease_grace = false,
  })
end
return redis.call('HGETALL', record_key(job.id))
