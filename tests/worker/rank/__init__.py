"""Test the ranks of a GPU group."""
