-- The holder lets go of the job. Asked again before somebody else took it, it answers what had followed.
local job = read(given.id)
if job and let_go(job) then return job.status end
job = held()
if not job then return LEASE_LOST end
return put_back(job, given.crashed, given.crash_error)
