-- A file may have been stored for a job that had ended, or was gone, before that.
local job = read(given.id)
if not job or ENDED[job.status] then redis.call('ZADD', 'longcat:removals', now, given.id) end
