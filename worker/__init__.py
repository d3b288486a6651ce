"""The worker: takes jobs from the queue and runs them on groups of GPUs. `python -m worker` starts it.

Read `supervisor` (one light process for each group, without torch), `protocol` (what it says to rank 0),
`rank` (a process on every GPU), `run` (one order, on all ranks), in this order.
"""
