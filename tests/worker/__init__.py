"""Test the parts of the worker alone, and whole workers whose real ranks fail on request."""
