"""Request videos from a terminal or a script: `python -m service.cli`.

The commands use only the service's HTTP API, so the service may run anywhere.
"""
