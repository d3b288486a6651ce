"""What keeps the stack from running; shown to people as one line."""

from __future__ import annotations


class StackError(Exception):
    """The stack cannot start, or ended by itself; the message says why and what to do."""
