"""Authenticate requests: API keys, the sessions of the console, and the decision who may do what."""
