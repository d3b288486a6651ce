-- A job may have gone while only what it had no need of was removed: then all else still is to be.
if given.all or read(given.id) then redis.call('ZREM', 'longcat:removals', given.id) end
