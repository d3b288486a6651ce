"""Read request bodies, and take in the images and clips that come with them."""
