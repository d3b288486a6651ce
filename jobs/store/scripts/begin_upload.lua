-- include: transitions
local job = held()
if not job then return LEASE_LOST end
if job.status == 'running' then set_status(job, 'uploading', {}) end
