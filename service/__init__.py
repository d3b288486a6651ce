"""The HTTP side: takes requests, checks them, queues orders, shows jobs and hands out their videos.

It imports `jobs` and the torch-free `model.spec`; it never generates anything itself.
"""
