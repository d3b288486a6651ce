"""From a request to frames: conditioning, denoising loop, events."""
