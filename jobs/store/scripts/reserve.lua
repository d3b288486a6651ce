-- Files of this id are about to be stored; unless it is submitted in time, they are removed.
if is_gone(given.id) then return NOT_FOUND end
if not read(given.id) then redis.call('ZADD', 'longcat:removals', now + given.keep_ms, given.id) end
