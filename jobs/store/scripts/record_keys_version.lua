-- include: call, allow_when_full
-- Record the version of the keys, unless the same or a later one is recorded, or the keys are too old for the caller.
-- Return the version that was recorded before, 0 if there was none, and the oldest that can use what is in Redis.
local KEY = 'longcat:keys_version'
local recorded, oldest_reader = unpack(redis.call('HMGET', KEY, 'version', 'oldest_reader'))
recorded, oldest_reader = tonumber(recorded or 0) or 0, tonumber(oldest_reader or 0) or 0
-- Release 0.2.0 recorded no version. Its sweeps keep their time, but do not name a sweeper, as those since 0.3.0 do.
if recorded == 0 and redis.call('EXISTS', 'longcat:last_sweep') > redis.call('EXISTS', 'longcat:sweeper') then
  recorded = 1
end
if given.version > recorded and (recorded == 0 or recorded >= given.oldest_reader) then
  redis.call('HSET', KEY, 'version', given.version, 'oldest_reader', given.oldest_reader)
  oldest_reader = given.oldest_reader
end
return {recorded, oldest_reader}
