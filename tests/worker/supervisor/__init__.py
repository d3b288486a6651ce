"""Tests of the supervisor of a GPU group."""
