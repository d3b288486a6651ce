"""Define the contract between the service and the workers: orders, records, store, queue, storage.

Both sides import this package. It imports neither of them, and never torch.
"""
