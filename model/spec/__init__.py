"""What can be requested of a checkpoint. Needs no torch."""
