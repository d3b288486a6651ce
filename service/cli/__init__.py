"""`python -m service.cli`: order videos from a terminal or a script, at a service that runs somewhere.

It knows the service's HTTP interface and nothing of what is behind it.
"""
