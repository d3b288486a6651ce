local job = held()
if not job then return 'lost' end
redis.call('ZADD', 'longcat:leases', now + given.lease_ms, job.id)
write(job, {spared = false})
if given.progress then
  write(job, {progress = given.progress})
  announce(job)
end
if job.cancel_requested then return 'cancel' end
local ran_ms = job.ran_ms + now - job.claimed_ms
if job.status == 'running' and job.max_run_ms and ran_ms > tonumber(job.max_run_ms) then return 'deadline' end
return 'go'
