"""Operate the service: health, metrics, maintenance, and a separate port for operators."""
