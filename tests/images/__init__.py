"""Build the images and run them: `make images`, `make compose-test`, or `python -m tests.images`.

Needs root and Debian's packages for containers; `tests.images.engine` lists them.
"""
