"""A hostile tenant against a whole running service: `make attacks`, or `python -m tests.attacks`."""
