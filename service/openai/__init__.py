"""Offer OpenAI's videos API under `/v1/videos`."""
