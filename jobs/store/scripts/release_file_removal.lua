-- include: files, allow_when_full
redis.call('ZREM', REMOVAL_LEASES, given.id)
