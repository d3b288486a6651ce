-- include: transitions, allow_when_full
local job = held()
if not job then return LEASE_LOST end
if job.status == 'running' then set_status(job, 'uploading', {}) end
