"""The fault campaign: a real installation, orders over HTTP, and one fault after the other."""
