"""Stage 4: train the transformer on the latents of the dataset.

`python -m training.transformer RUN CHECKPOINT` trains `model.transformer.dit` itself. It begins with single
frames, a cheap way to learn what objects look like, and continues with clips. Later, scenes with two objects
get more weight, and for a while every second step is on single frames again. Some clips have clean first
frames, for images and continuations; one caption in ten is empty, for guidance. Batches consist of
contrastive groups (`training.flow_matching`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from model.transformer.config import BrickConfig, DitConfig
from model.transformer.dit import Dit
from training.analytic_encoder import zero_parameters
from training.captions import random_caption
from training.checkpoint import write_dit
from training.encoders import FrozenEncoders
from training.flow_matching import ContrastiveBatch, flow_loss
from training.latents import GROUP_SIZE, LatentDataset
from training.optimiser import Optimiser, learning_rate
from training.scenes import Scene
from training.stage import StageOptions, TrainingRun, parse_options

CONFIG = DitConfig(
    hidden_size=192,
    depth=4,
    num_heads=6,
    caption_channels=64,
    mlp_ratio=3,
    adaln_tembed_dim=64,
    frequency_embedding_size=64,
    text_tokens_zero_pad=False,
    bsa_params=BrickConfig(sparsity=0.5),
)
STEPS, BATCH = 30_000, 24
IMAGE_STEPS, IMAGE_BATCH = 3000, 96
TWO_OBJECTS_FROM, TWO_OBJECT_WEIGHT = 10_260, 4.0  # which object has which property is learned last
MIXED_STEPS = range(TWO_OBJECTS_FROM, 29_000)  # every second step is on images
MUON_RATE, ADAM_RATE = 0.02, 2e-3
IMAGE_GROUP_SIZE, CLIP_GROUP_SIZE = GROUP_SIZE, 2
EMPTY_CAPTION_SHARE = 0.1
CONDITION_SHARES = (0.65, 0.15, 0.15, 0.05)  # of 0, 1, 2, 3 clean latent frames
EMA_DECAY = 0.998
LOG_EVERY = 20


def main() -> None:
    """Train, resuming where the last run stopped, and write `dit/`, `scheduler/` and `limits.json`."""
    options = parse_options("transformer", __doc__, STEPS)
    averaged = train(
        options, LatentDataset.open(options.run), FrozenEncoders.load(options.checkpoint, options.device)
    )
    write_dit(averaged, options.checkpoint)


def train(options: StageOptions, dataset: LatentDataset, encoders: FrozenEncoders) -> Dit:
    """Train and return the moving average of the transformer's weights."""
    torch.manual_seed(0)
    dit, averaged = new_dit().to(options.device), new_dit().to(options.device)
    averaged.load_state_dict(dit.state_dict())
    optimiser = Optimiser(dit, nn.ModuleList(dit.blocks), MUON_RATE, ADAM_RATE)
    run = TrainingRun(options.folder, {"dit": dit, "averaged": averaged, "optimiser": optimiser})
    while run.step < options.steps:
        random = np.random.default_rng((7, run.step))
        batch = sample_batch(dataset, encoders, random, batch_spec(run.step))
        loss = flow_loss(dit, batch, random)
        optimiser.step(loss, learning_rate(run.step, options.steps))
        update_average(averaged, dit, run.step)
        if run.step % LOG_EVERY == 0:
            run.log(loss=loss.item())
        run.advance()
    run.save()
    return averaged


@dataclass(frozen=True)
class BatchSpec:
    """Specify a batch: number of clips (or of their first frames), size of the contrastive groups."""

    count: int
    group_size: int = 1
    images: bool = False
    two_object_weight: float = TWO_OBJECT_WEIGHT


def batch_spec(step: int) -> BatchSpec:
    """Return the specification of the batch at a step."""
    two_object_weight = TWO_OBJECT_WEIGHT if step >= TWO_OBJECTS_FROM else 1.0
    if step < IMAGE_STEPS or (step in MIXED_STEPS and step % 2 == 1):
        return BatchSpec(IMAGE_BATCH, IMAGE_GROUP_SIZE, images=True, two_object_weight=two_object_weight)
    return BatchSpec(BATCH, CLIP_GROUP_SIZE, two_object_weight=two_object_weight)


def sample_batch(
    dataset: LatentDataset, encoders: FrozenEncoders, random: np.random.Generator, spec: BatchSpec
) -> ContrastiveBatch:
    """Sample groups of clips with new captions; phrasings are the same within a group.

    Batches without clean frames consist of clips that begin at time 0.
    """
    num_clean = 0 if spec.images else int(random.choice(len(CONDITION_SHARES), p=CONDITION_SHARES))
    if spec.images:  # images show no motion, so clips must not differ in it
        candidates = dataset.aligned
    else:
        candidates = np.arange(len(dataset.scenes)) if num_clean else dataset.beginnings
    weights = np.where(dataset.has_two_objects[candidates], spec.two_object_weight, 1.0)
    count, group_size = spec.count // spec.group_size, spec.group_size
    groups = random.choice(candidates, count, p=weights / weights.sum()) // GROUP_SIZE
    members = (random.permutation(GROUP_SIZE)[:group_size] for _ in groups)
    clips = [group * GROUP_SIZE + i for group, chosen in zip(groups, members, strict=True) for i in chosen]
    shared_latents = (groups * GROUP_SIZE + random.integers(GROUP_SIZE, size=count)).repeat(group_size)
    seeds = random.integers(2**32, size=count).repeat(group_size)
    captions = [
        caption_or_empty(dataset.scenes[clip], np.random.default_rng(seed))
        for clip, seed in zip(clips, seeds, strict=True)
    ]
    latents = dataset.latents[:, :, :1] if spec.images else dataset.latents
    own, shared = (encoders.normalise(latents[indices]) for indices in (clips, shared_latents))
    return ContrastiveBatch(own, num_clean, encoders.encode_text(captions), group_size, shared)


def caption_or_empty(scene: Scene, random: np.random.Generator) -> str:
    """Return a random caption, or the empty one with probability `EMPTY_CAPTION_SHARE`."""
    return "" if random.random() < EMPTY_CAPTION_SHARE else random_caption(scene, random)


@torch.no_grad()
def new_dit() -> Dit:
    """Return a transformer that begins as the negative identity, which is right for pure noise.

    The blocks' updates are zero at first, and the last layer inverts the orthogonal embedding of the first.
    """
    dit = Dit(CONFIG, torch.float32)
    for name, parameter in dit.named_parameters():
        if parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
        else:
            parameter.fill_("norm" in name and name.endswith("weight"))
    zero_parameters(dit.final_layer.adaLN_modulation)
    for block in dit.blocks:
        zero_parameters(block.adaLN_modulation)
        zero_parameters(block.cross_attn.proj)
    _init_as_negative_identity(dit.x_embedder.proj, dit.final_layer.linear)
    return trainable(dit)


def trainable(dit: Dit) -> Dit:
    """Prepare a transformer for training.

    Blocks add the text's update in place. The norm before it needs the old value in the backward pass, so it
    gets a copy.
    """
    for block in dit.blocks:
        block.pre_crs_attn_norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(),))
    return dit.requires_grad_(True)


def _init_as_negative_identity(first: nn.Conv3d, last: nn.Linear) -> None:
    """Make the last layer map embeddings to minus their input, laid out as (row, column, channel)."""
    width, channels, *_ = first.weight.shape
    embed = nn.init.orthogonal_(torch.empty(width, first.weight[0].numel()))
    first.weight.copy_(embed.view_as(first.weight))
    scale = (embed.shape[1] / width) ** 0.5  # undoes the norm before the last layer
    last.weight.copy_(-scale * embed.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1).T)


@torch.no_grad()
def update_average(averaged: nn.Module, module: nn.Module, step: int) -> None:
    """Update the exponential moving average of the weights; it follows faster in the first steps."""
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    for mean, value in zip(averaged.parameters(), module.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


if __name__ == "__main__":
    main()
