-- include: transitions, allow_when_full
-- The holder gives a job up because `reader` cannot read its record. That uses up no attempt, and other readers may
-- claim the job. If it had not started before, it has not started now, and it waits for its deadline again.
local job = held()
if not job then return LEASE_LOST end
local status = requeue(job, 'unreadable')
if status == 'queued' then
  set_aside(job, given.reader)
  if tonumber(job.fence) == 1 then
    write(job, {started_ms = false})
    if job.max_queue_ms then
      redis.call('ZADD', 'longcat:queue_deadlines', job.created_ms + job.max_queue_ms, job.id)
    end
  end
end
return status
