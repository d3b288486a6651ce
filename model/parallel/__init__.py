"""Context parallelism: the only package in which ranks appear."""
