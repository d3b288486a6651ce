local counts = {}
for _, status in ipairs({'queued', 'running', 'uploading', 'succeeded', 'failed', 'cancelled'}) do
  table.insert(counts, status)
  table.insert(counts, redis.call('ZCARD', 'longcat:index:' .. status))
end
return counts
