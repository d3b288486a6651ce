"""The HTTP service with a real Redis and a real storage folder. Tests play the worker themselves."""
