"""Read request bodies, and fetch and check the images and clips that come with them."""
