-- include: record, allow_when_full
local job = held()
if not job then return LEASE_LOST end
write(job, {checkpoint = given.checkpoint, saved_gpu_ms = gpu_ms(job)})
