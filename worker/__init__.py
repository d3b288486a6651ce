"""Take jobs from the queue and run them on groups of GPUs. `python -m worker` starts the worker.

Read these modules in this order: `launcher` (one supervisor process for each group), `supervisor.supervisor`
(decides what happens to the jobs of a group, without torch), `messages` (between supervisor and rank 0),
`rank.main` (one process for each GPU) and `rank.run_job` (one job, on all ranks).
"""
