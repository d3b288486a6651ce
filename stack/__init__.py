"""Run the whole service on one machine: Redis, the API and a worker, started and stopped together.

`python -m stack serve` runs it in the foreground. `python -m stack demo` makes two videos with it.
"""
