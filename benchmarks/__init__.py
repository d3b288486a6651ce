"""Measure the model and the service. `benchmarks/README.md` lists what is measured, and by which command."""
