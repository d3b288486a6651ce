"""The HTTP service: it checks requests, queues jobs, shows their state and serves their videos.

It never imports torch and generates nothing itself: workers take the jobs from Redis.
"""
