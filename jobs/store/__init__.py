"""Store the records of all jobs in Redis, which change only by atomic scripts.

`JobStore` offers three roles: `client` (the service), `holder` (the worker that runs a job) and `maintenance`
(every process).
"""
