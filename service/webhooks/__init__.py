"""Webhooks by the Standard Webhooks specification.

They are signed (`signing`), sent (`sending`), and sent again until somebody takes them (`courier`). What is
to be sent, and when, lies in Redis (`jobs.store.outbox`), so any number of processes may send.
"""
