-- include: files
-- Return the id of the job that an idempotency key belongs to, and its record if it was submitted. A new key gets the
-- offered id for a limited time; submission keeps it as long as the job. An id whose reservation ran out is replaced.
local id, fingerprint = unpack(redis.call('HMGET', given.key, 'job', 'fingerprint'))
if id and is_gone(id) then id = false end
if id and fingerprint ~= given.fingerprint then return KEY_REUSED end
if not id then
  id = given.id
  redis.call('HSET', given.key, 'job', id, 'fingerprint', given.fingerprint)
end
local record = redis.call('HGETALL', record_key(id))
if #record == 0 then redis.call('PEXPIRE', given.key, given.keep_ms) end
return {id, record}
