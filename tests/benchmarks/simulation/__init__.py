"""The simulation of the scheduler."""
