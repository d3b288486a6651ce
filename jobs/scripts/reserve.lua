-- Files of this id are about to be stored; unless it is submitted in time, they are removed.
if not read(given.id) then
  redis.call('ZADD', 'longcat:reserved', now + given.keep_ms, given.id)
end
