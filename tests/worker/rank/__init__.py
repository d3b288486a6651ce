"""Tests of the ranks of a GPU group."""
