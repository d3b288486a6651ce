"""Check whether this machine can run a worker with its settings: `python -m worker.check`."""
