"""Tests of the worker: its parts alone, and whole with staged faults on real ranks."""
