"""Fourth stage: the transformer, on latents of the world.

`python -m training.transformer RUN CHECKPOINT` trains `model.transformer.dit` itself, first on single frames,
which teach cheaply what things look like, then on clips, at last more often of two things, for a while in
turn with single frames. Of the clips some begin with clean frames, for images and continuations; one caption
in ten is
empty, for guidance. Clips come with the twins of `training.latents`, which `flow_loss` makes use of.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from model.transformer.config import BrickConfig, DitConfig
from model.transformer.dit import Dit
from training.captions import caption
from training.cells import silence
from training.checkpoint import write_dit
from training.flow import Twins, flow_loss
from training.latents import TWINS, Clips
from training.optimiser import Optimiser, learning_rate
from training.reader import Reader
from training.stage import Run, Stage, stage
from training.world import Scene

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
PAIRS_FROM, PAIR_WEIGHT = 10_260, 4.0  # which thing has which property is the last to be learned
MIXED_STEPS = range(PAIRS_FROM, 29_000)  # every second one of images
MUON_RATE, ADAM_RATE = 0.02, 2e-3
IMAGE_TWINS, CLIP_TWINS = TWINS, 2
EMPTY_CAPTIONS = 0.1
CONDITION_SHARES = (0.65, 0.15, 0.15, 0.05)  # of 0, 1, 2, 3 clean latent frames
EMA_DECAY = 0.998
LOG_EVERY = 20


def main() -> None:
    """Train, resuming where the last run stopped, and write the checkpoint's `dit/` and what goes with it."""
    told = stage("transformer", __doc__, STEPS)
    averaged = train(told, Clips.open(told.run), Reader.load(told.checkpoint, told.device))
    write_dit(averaged, told.checkpoint)


def train(told: Stage, clips: Clips, reader: Reader) -> Dit:
    """The averaged transformer after so many steps."""
    torch.manual_seed(0)
    dit, averaged = new_dit().to(told.device), new_dit().to(told.device)
    averaged.load_state_dict(dit.state_dict())
    optimiser = Optimiser(dit, nn.ModuleList(dit.blocks), MUON_RATE, ADAM_RATE)
    run = Run(told.folder, {"dit": dit, "averaged": averaged, "optimiser": optimiser})
    while run.step < told.steps:
        random = np.random.default_rng((7, run.step))
        batch = pick(clips, reader, random, selection(run.step))
        loss = flow_loss(dit, batch, random)
        optimiser.step(loss, learning_rate(run.step, told.steps))
        average(averaged, dit, run.step)
        if run.step % LOG_EVERY == 0:
            run.log(loss=loss.item())
        run.advance()
    run.save()
    return averaged


@dataclass(frozen=True)
class Selection:
    """What makes a batch: so many clips or first frames of them, with so many twins of each."""

    count: int
    twins: int = 1
    images: bool = False
    pair_weight: float = PAIR_WEIGHT


def selection(step: int) -> Selection:
    """What is learned from at a step."""
    pair_weight = PAIR_WEIGHT if step >= PAIRS_FROM else 1.0
    if step < IMAGE_STEPS or (step in MIXED_STEPS and step % 2 == 1):
        return Selection(IMAGE_BATCH, IMAGE_TWINS, images=True, pair_weight=pair_weight)
    return Selection(BATCH, CLIP_TWINS, pair_weight=pair_weight)


def pick(clips: Clips, reader: Reader, random: np.random.Generator, wanted: Selection) -> Twins:
    """Clips from the data set with fresh captions; without clean frames, of beginnings only."""
    num_clean = 0 if wanted.images else int(random.choice(len(CONDITION_SHARES), p=CONDITION_SHARES))
    if wanted.images:  # which show nothing of motions
        among = clips.aligned
    else:
        among = np.arange(len(clips.scenes)) if num_clean else clips.beginnings
    weights = np.where(clips.are_pairs[among], wanted.pair_weight, 1.0)
    count, twins = wanted.count // wanted.twins, wanted.twins
    families = random.choice(among, count, p=weights / weights.sum()) // TWINS
    picked = [family * TWINS + turn for family in families for turn in random.permutation(TWINS)[:twins]]
    guises = (families * TWINS + random.integers(TWINS, size=count)).repeat(twins)
    seeds = random.integers(2**32, size=count).repeat(twins)
    captions = [words(clips.scenes[i], np.random.default_rng(s)) for i, s in zip(picked, seeds, strict=True)]
    latents = clips.latents[:, :, :1] if wanted.images else clips.latents
    own, shared = (reader.normalised(latents[indices]) for indices in (picked, guises))
    return Twins(own, num_clean, reader.read(captions), twins, shared)


def words(scene: Scene, random: np.random.Generator) -> str:
    """A caption, now and then the empty one."""
    return "" if random.random() < EMPTY_CAPTIONS else caption(scene, random)


@torch.no_grad()
def new_dit() -> Dit:
    """A transformer that begins as minus the identity: right where there is nothing but noise.

    Blocks begin silent, and the last layer undoes the first one's orthogonal embedding.
    """
    dit = Dit(CONFIG, torch.float32)
    for name, parameter in dit.named_parameters():
        if parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
        else:
            parameter.fill_("norm" in name and name.endswith("weight"))
    silence(dit.final_layer.adaLN_modulation)
    for block in dit.blocks:
        silence(block.adaLN_modulation)
        silence(block.cross_attn.proj)
    _mirror(dit.x_embedder.proj, dit.final_layer.linear)
    return trainable(dit)


def trainable(dit: Dit) -> Dit:
    """Blocks add the text's update in place, which a norm before it must not notice in the backward pass."""
    for block in dit.blocks:
        block.pre_crs_attn_norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(),))
    return dit.requires_grad_(True)


def _mirror(first: nn.Conv3d, last: nn.Linear) -> None:
    """Values come out of the last layer as (row, column, channel), and behind a norm."""
    width, channels, *_ = first.weight.shape
    embed = nn.init.orthogonal_(torch.empty(width, first.weight[0].numel()))
    first.weight.copy_(embed.view_as(first.weight))
    spread = (embed.shape[1] / width) ** 0.5
    last.weight.copy_(-spread * embed.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1).T)


@torch.no_grad()
def average(averaged: nn.Module, module: nn.Module, step: int) -> None:
    """Follow the weights, at first closely."""
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    for mean, value in zip(averaged.parameters(), module.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)


if __name__ == "__main__":
    main()
