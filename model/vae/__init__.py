"""The Wan VAE: pixels to latents and back."""
