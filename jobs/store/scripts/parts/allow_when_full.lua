-- Scripts that include this run even while Redis is full: they free memory, or let running jobs end. Redis refuses a
-- command that may need memory only if it is the first write of a script. Deleting nothing is a write.
redis.call('DEL', 'longcat:none')
