redis.call('ZREM', 'longcat:removals', given.id)
