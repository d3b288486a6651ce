"""The error of the stack."""

from __future__ import annotations


class StackError(Exception):
    """The stack cannot start, or one of its processes exited; the message says what to do."""
