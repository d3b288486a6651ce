return redis.call('ZRANGE', 'longcat:removals', 0, given.limit - 1)
