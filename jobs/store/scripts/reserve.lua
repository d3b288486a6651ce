-- include: files
-- Files of these ids are about to be stored. They are removed unless the ids are submitted in time.
for _, id in ipairs(given.ids) do
  if is_gone(id) then return JOB_NOT_FOUND end
end
for _, id in ipairs(given.ids) do
  if not read(id) then redis.call('ZADD', FIRST_REMOVALS, now + given.keep_ms, id) end
end
