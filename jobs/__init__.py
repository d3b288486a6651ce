"""The contract between the service and the workers: orders, records, transitions, the queue, storage.

Both sides import this package; it imports neither of them, and never torch.
"""
