"""Images and clips from outside, decoded in confined child processes. No torch.

`reading` has what the service and the model call. `sandbox` starts the processes; `forkserver`,
`confinement`, `images` and `clips` run in them. `formats` has the lists and limits.
"""
