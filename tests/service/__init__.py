"""The HTTP service against a real Redis and a real folder; the worker is played by hand."""
