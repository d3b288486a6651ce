"""Offer what operators need: health, metrics, maintenance, and a port of their own for them."""
