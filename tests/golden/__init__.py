"""What a release stored and sent, recorded by its own code: `python -m tests.golden` adds a release."""
