-- include: record
local job = held()
if not job then return LEASE_LOST end
write(job, {checkpoint = given.checkpoint})
