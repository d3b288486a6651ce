-- include: files, allow_when_full
-- Lease a due removal that no other process has leased: the next one, or that of a given job. Return the job and the
-- time since when it is due, false if there is none.
redis.call('ZREMRANGEBYSCORE', REMOVAL_LEASES, '-inf', now)
for _, key in ipairs({FIRST_REMOVALS, SECOND_REMOVALS}) do
  local candidates = given.id and {given.id} or due(key)
  for _, id in ipairs(candidates) do
    local since = redis.call('ZSCORE', key, id)
    if since and tonumber(since) <= now and not redis.call('ZSCORE', REMOVAL_LEASES, id) then
      redis.call('ZADD', REMOVAL_LEASES, now + given.lease_ms, id)
      return {id, since}
    end
  end
end
return false
