-- include: files, allow_when_full
-- An upload may have finished after the job had ended or was removed.
local job = read(given.id)
if not job or ENDED[job.status] then redis.call('ZADD', FIRST_REMOVALS, now, given.id) end
