if not visible(given.id) then return NOT_FOUND end
return redis.call('HGETALL', record_key(given.id))
