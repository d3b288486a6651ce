"""Run on every GPU of a group: generate one job after the other with the model."""
