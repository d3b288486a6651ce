-- include: call, allow_when_full
-- Record the version of the keys, unless the same or a later one is recorded. Return the oldest version that can use
-- what is in Redis.
local key = 'longcat:keys_version'
local recorded = tonumber(redis.call('HGET', key, 'version') or 0)
if not recorded or given.version > recorded then
  redis.call('HSET', key, 'version', given.version, 'oldest_reader', given.oldest_reader)
end
return tonumber(redis.call('HGET', key, 'oldest_reader') or 0) or 0
