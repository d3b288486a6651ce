-- include: files, allow_when_full
-- `since` is the due time that the caller saw. If files became due again meanwhile, nothing changes.
if redis.call('ZSCORE', SECOND_REMOVALS, given.id) == given.since then
  redis.call('ZREM', SECOND_REMOVALS, given.id)
elseif redis.call('ZSCORE', FIRST_REMOVALS, given.id) == given.since then
  redis.call('ZREM', FIRST_REMOVALS, given.id)
  redis.call('ZADD', SECOND_REMOVALS, now + given.late_ms, given.id)
end
