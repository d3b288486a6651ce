"""Compare elastic groups with each fixed split on a real installation: `python -m benchmarks.elastic`.

Redis, API, supervisors and four gloo ranks are real; only time is staged. On two cores more ranks are not
faster, so each step lasts at least as long as LongCat-Video's would on GPUs (`benchmarks.elastic.pace`),
scaled down. The real computation runs within that time.
"""
