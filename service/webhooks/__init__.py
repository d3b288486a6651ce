"""Send webhooks by the Standard Webhooks specification (https://www.standardwebhooks.com).

`delivery_worker` leases deliveries from Redis (`jobs.store.outbox`), `sender` posts them, `signing` signs
them. Any number of processes may send.
"""
