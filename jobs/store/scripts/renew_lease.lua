-- include: transitions, preemption, allow_when_full
local job = held()
if not job then return 'lease_lost' end
redis.call('ZADD', 'longcat:leases', now + given.lease_ms, job.id)
write(job, {lease_grace = false, progress = given.progress})
if given.num_gpus and given.num_gpus ~= tonumber(job.num_gpus) and job.status == 'running' then
  write(job, {
    gpu_ms = gpu_ms(job),
    paused_ms = paused_ms(job),
    num_gpus_since_ms = now,
    num_gpus = given.num_gpus,
  })
end
if given.progress then add_event(job) end
if job.cancel_requested then return 'cancel' end
if job.status == 'running' and job.max_run_ms and run_ms(job) > tonumber(job.max_run_ms) then return 'deadline' end
if given.preempt_after_ms and request_preemption(job, given.preempt_after_ms) then return 'preempt' end
return nil
