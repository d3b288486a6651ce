"""Show the GPU time that owners have used."""
