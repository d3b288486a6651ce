-- include: transitions, allow_when_full
-- The holder gives the job up. A repeated call, before another claim, returns the status that followed.
local job = read(given.id)
if job and was_released(job) then return job.status end
job = held()
if not job then return LEASE_LOST end
return requeue(job, given.crashed and 'crashed' or 'drained', given.crash_error)
