"""Run a fault campaign: jobs over HTTP on a real installation, and one fault after the other."""
