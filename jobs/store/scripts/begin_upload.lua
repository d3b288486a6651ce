local job = held()
if not job then return LEASE_LOST end
if job.status == 'running' then become(job, 'uploading', {}) end
