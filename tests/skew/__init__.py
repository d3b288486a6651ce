"""Run two releases in one installation: the last one, from the repository's history, and the working tree."""
