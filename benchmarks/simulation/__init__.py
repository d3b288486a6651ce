"""Simulate a fleet on the real job store: `python -m benchmarks.simulation`.

Arrivals come from a trace, groups claim jobs from the job store in a private Redis, and a simulated clock
jumps from event to event, so that hours of a fleet take seconds. Only run times are modelled (`times`). The
store's scripts take the time from their caller, as in tests; nothing in them knows of the simulation.
"""
