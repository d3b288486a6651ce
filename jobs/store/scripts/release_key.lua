-- include: record
-- The request failed, so its key is free again, unless another request with this key was submitted.
if redis.call('HGET', given.key, 'job') == given.id and not read(given.id) then
  redis.call('DEL', given.key)
end
