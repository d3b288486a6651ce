local index = 'longcat:index:' .. (given.status or 'all')
if given.owner then index = index .. ':' .. given.owner end
local from, to = '-inf', '+inf'
if given.newest then from, to = to, from end
if given.after then
  local after = visible(given.after)
  if not after then return NOT_FOUND end
  from = '(' .. after.number
end
local ids
if given.newest then
  ids = redis.call('ZRANGE', index, from, to, 'BYSCORE', 'REV', 'LIMIT', 0, given.limit)
else
  ids = redis.call('ZRANGE', index, from, to, 'BYSCORE', 'LIMIT', 0, given.limit)
end
local page = {}
for i, id in ipairs(ids) do page[i] = redis.call('HGETALL', record_key(id)) end
return page
