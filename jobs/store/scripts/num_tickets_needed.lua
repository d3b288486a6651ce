-- How many tickets there should be: one for each queued job, none if none of them may begin now.
return next_in_line() and redis.call('ZCARD', 'longcat:index:queued') or 0
