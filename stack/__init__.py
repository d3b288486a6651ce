"""The whole service on one machine: Redis, the API and a worker, started and ended together.

`python -m stack serve` runs it in the foreground, `python -m stack demo` orders two films of it. The
processes are started as programs; of our own packages only `jobs` is imported.
"""
