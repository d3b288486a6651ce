"""Checkpoints, LoRA files, images and videos."""
