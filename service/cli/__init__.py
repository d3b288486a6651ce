"""Request videos from a terminal or a script: `longcat`, or `python -m service.cli`.

The commands use the package `longcat_video_client`, so the service may run anywhere.
"""
