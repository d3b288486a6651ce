-- include: files
-- Files of this id are about to be stored. They are removed unless it is submitted in time.
if is_gone(given.id) then return JOB_NOT_FOUND end
if not read(given.id) then redis.call('ZADD', FIRST_REMOVALS, now + given.keep_ms, given.id) end
