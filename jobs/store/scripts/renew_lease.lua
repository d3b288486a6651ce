local job = held()
if not job then return 'lease_lost' end
redis.call('ZADD', 'longcat:leases', now + given.lease_ms, job.id)
write(job, {spared = false})
if given.progress then
  write(job, {progress = given.progress})
  local eta_s = cjson.decode(given.progress).eta_s
  if type(eta_s) == 'number' and not job.told_ms then
    write(job, {told_ms = now, told_end_ms = math.floor(now + eta_s * 1000)})
  end
  announce(job)
end
if job.cancel_requested then return 'cancel' end
local ran_ms = job.ran_ms + now - job.claimed_ms
if job.status == 'running' and job.max_run_ms and ran_ms > tonumber(job.max_run_ms) then return 'deadline' end
if given.preempt_after_ms and makes_way(job, given.preempt_after_ms) then return 'preempt' end
return nil
