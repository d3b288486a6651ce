"""Decode images and clips of clients in confined child processes. Needs no torch.

`reading` has the functions that the service and the model call. `sandbox` starts the processes; `forkserver`,
`confinement`, `images` and `clips` run in them. `formats` has the lists and limits.
"""
