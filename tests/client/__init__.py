"""The client package against the real service."""
