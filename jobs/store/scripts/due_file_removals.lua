-- Ids whose files are to be looked through now, for the first time or for the last, and since when.
local ids = {}
for _, key in ipairs({'longcat:removals', 'longcat:settling'}) do
  local found = redis.call('ZRANGE', key, '-inf', now, 'BYSCORE', 'LIMIT', 0, given.limit, 'WITHSCORES')
  for _, word in ipairs(found) do table.insert(ids, word) end
end
return ids
