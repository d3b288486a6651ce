"""Test the supervisor of a GPU group."""
