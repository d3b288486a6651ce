-- Takes the job that is next. The token makes asking again, after a lost answer, give the same claim.
local claim_key = 'longcat:claims:' .. given.token
local claimed = redis.call('GET', claim_key)
local job = claimed and read(claimed)
if not (job and HELD[job.status] and job.token == given.token) then
  local id = next_in_line()
  if not id then return false end
  job = read(id)
  take_turn(job)
  measure_begin(job)
  redis.call('SET', claim_key, id, 'PX', given.lease_ms)
  redis.call('ZADD', 'longcat:leases', now + given.lease_ms, id)
  become(job, 'running', {
    attempt = job.attempt + 1,
    fence = job.fence + 1,
    token = given.token,
    group = given.group,
    lease_ms = given.lease_ms,
    claimed_ms = now,
    started_ms = job.started_ms or now,
    spared = false,
  })
end
return redis.call('HGETALL', record_key(job.id))
