"""LongCat-Video: the transformer, its text encoder and VAE, and the loop that makes a video of them.

Importing this package loads nothing heavy. Begin at `model.pipeline`; `model.shapes` needs no torch.

Tensor axes, one letter each, in every shape of the package:
    b batch     f latent frames     h latent rows       w latent columns    z latent channels
    n tokens    a heads             d head dimension    c width             l text tokens       p ranks
    g groups of frames (each one latent frame, or the frames of a brick)    m tokens in a group
"""
