"""The parameters of a request, the limits of a checkpoint and the resolved plan. Needs no torch."""
