-- All files were looked through. The first time it is to be done once more, when what is on its way has arrived; and
-- where there was a reason to do it again meanwhile, nothing changes.
if redis.call('ZSCORE', 'longcat:settling', given.id) == given.since then
  redis.call('ZREM', 'longcat:settling', given.id)
elseif redis.call('ZSCORE', 'longcat:removals', given.id) == given.since then
  redis.call('ZREM', 'longcat:removals', given.id)
  redis.call('ZADD', 'longcat:settling', now + given.late_ms, given.id)
end
