-- include: files
-- Ids whose files are to be removed now, each followed by the time since when.
local removals = {}
for _, key in ipairs({FIRST_REMOVALS, SECOND_REMOVALS}) do
  local found = redis.call('ZRANGE', key, '-inf', now, 'BYSCORE', 'LIMIT', 0, given.limit, 'WITHSCORES')
  for _, word in ipairs(found) do table.insert(removals, word) end
end
return removals
