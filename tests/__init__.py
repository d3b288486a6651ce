"""The tests, a mirror of the packages; `end_to_end` runs the whole stack."""
