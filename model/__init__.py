"""LongCat-Video: the transformer, its text encoder and VAE, and the loop that makes a video of them.

Start reading at `model.pipeline.pipeline`. Importing this package loads nothing heavy, and `model.spec` needs
no torch.

Shapes are annotated with jaxtyping. Each name of an axis has one meaning in the whole package:

    Text and latents
        b               samples of a batch, one for each text
        texts           texts of guidance: the prompt, or the negative prompt and the prompt
        l               text tokens
        e               width of the text encoder
        z               latent channels
        f               latent frames
        h               latent rows
        w               latent columns
        moments         means and log variances of the latent channels
        steps           denoising steps
        levels          noise levels, one more than steps
        bytes           bytes of a random generator's state

    Tokens of the transformer
        g               groups: consecutive latent frames that are modulated alike
        m               tokens of a group, on this rank
        n               tokens of all groups, as queries
        s               tokens that are attended to, as keys
        token_rows      rows of tokens in a latent frame
        token_columns   columns of tokens in a latent frame
        patch           values of a patch, which becomes one token
        c               width of the transformer
        t               width of the timestep embedding
        a               attention heads
        d               width of an attention head
        half            pairs of dimensions of a head that RoPE rotates, d / 2
        positions       positions along one axis of RoPE
        p               ranks

    Block-sparse attention
        bricks          query bricks or key bricks
        qb              query bricks
        kb              key bricks
        tq              tokens of a query brick
        tk              tokens of a key brick
        listed          key bricks that are listed for a query brick
        pairs           pairs of neighbouring query bricks
        ba              heads of all samples, b · a

    Matrices
        r               rows of a matrix
        in              inputs of a linear layer
        out             outputs of a linear layer or a convolution

    Pixels and the VAE
        frames          frames of a clip, or of a feature map
        height          pixel rows
        width           pixel columns
        channels        channels of a feature map
        rows            rows of a feature map, on this rank
        columns         columns of a feature map
        places          rows · columns

    rest                any further axes

A prefix marks another size of the same axis: `all_` on all ranks or of all texts, `local_` on this rank,
`filled_` without padding, `padded_` with a border, `past_` before the current chunk, `noise_` and `clean_` of
noise and condition frames alone, `new_` of a result, `image_`, `condition_` and `refined_` of another clip,
`other_` of another text.
"""
