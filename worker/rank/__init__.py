"""Run jobs on the ranks of a GPU group: one process for each GPU, in step.

Read `main` (load the model, then run one job after the other), `run_job` (run one job on all ranks) and
`leader` (what rank 0 does for a job beside the model) in this order.
"""
