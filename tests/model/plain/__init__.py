"""LongCat-Video written out slowly: every head, brick and frame in a loop, nothing cached, nothing merged.

The truth for what the parity data does not reach. It shares no line with `model`; only the VAE and the
text encoder are the same libraries.
"""
