if read(given.id) then return 1 end
for _, key in ipairs({'longcat:removals', 'longcat:settling'}) do
  if redis.call('ZSCORE', key, given.id) then return 1 end
end
return 0
