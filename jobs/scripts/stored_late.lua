-- A file was stored for a job that may have ended, or gone, before that.
local job = read(given.id)
if not job or ENDED[job.status] then redis.call('ZADD', 'longcat:removals', now, given.id) end
