"""Webhooks by the Standard Webhooks specification: signed (`signing`), sent (`sending`), again and again (`courier`).

What is to be sent, and when, lies in Redis (`jobs.outbox`), so any number of processes may send.
"""
