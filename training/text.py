"""Stage 2: build the tokenizer and train the text encoder, in UMT5's format, on captions alone.

`python -m training.text RUN CHECKPOINT` trains the encoder by classification: from the hidden state of
every single token, one linear layer predicts all properties of the scene, which of two objects the token
belongs to, and the properties of that object. Without the last two the encoder does not learn to tell two
objects apart. The transformer can then read the whole meaning from any token. No images are needed, and
captions are generated without limit.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from training.captions import SceneDescription, parse_caption, random_caption, second_object_words
from training.optimiser import Optimiser, learning_rate
from training.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, SPEEDS, random_scene
from training.stage import StageOptions, TrainingRun, parse_options
from training.tokenizer import build_tokenizer

WIDTH = 64
STEPS, BATCH = 1500, 64
MUON_RATE, ADAM_RATE = 0.02, 2e-3
LOG_EVERY = 50
TWO_OBJECT_SHARE = 0.5  # more than in the dataset, because such captions are harder
IGNORE_INDEX = -100  # tokens without a label
MASKING_BIAS = -8.0
OBJECT_PROPERTIES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "motion": MOTIONS,
    "speed": SPEEDS,
    "size": SIZES,
}


def main() -> None:
    """Train, resuming where the last run stopped, and write `tokenizer/` and `text_encoder/`."""
    options = parse_options("text", __doc__, STEPS)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(options.checkpoint / "tokenizer")
    train(options, tokenizer).save_pretrained(options.checkpoint / "text_encoder")


def train(options: StageOptions, tokenizer: PreTrainedTokenizerFast) -> UMT5EncoderModel:
    """Train the encoder to predict every property from every token; "not mentioned" is a class, too."""
    torch.manual_seed(0)
    encoder = new_encoder(len(tokenizer))
    nn.Module.to(encoder, options.device)
    classifier = nn.Linear(WIDTH, sum(_class_counts())).to(options.device)
    trained = nn.ModuleList([encoder, classifier])
    optimiser = Optimiser(trained, encoder.encoder.block, MUON_RATE, ADAM_RATE)
    run = TrainingRun(options.folder, {"encoder": encoder, "questions": classifier, "optimiser": optimiser})
    while run.step < options.steps:
        ids, mask, classes, owners = (
            part.to(options.device) for part in batch(tokenizer, BATCH, (1, run.step))
        )
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        loss, accuracy = property_loss(classifier(hidden), mask, classes, owners)
        optimiser.step(loss, learning_rate(run.step, options.steps))
        if run.step % LOG_EVERY == 0:
            run.log(loss=loss.item(), right=accuracy.item())
        run.advance()
    run.save()
    return encoder.eval()


@torch.no_grad()
def new_encoder(vocabulary_size: int) -> UMT5EncoderModel:
    """Return an encoder whose four heads attend to the preceding, following, all earlier and all tokens.

    They are initialised by their relative position biases. With biases near zero, training never learned
    the order of the words.
    """
    encoder = UMT5EncoderModel(encoder_config(vocabulary_size))
    distance = torch.arange(16.0)  # buckets of relative positions in one direction; far ones are wider
    away, anywhere = torch.full_like(distance, MASKING_BIAS), torch.zeros_like(distance)
    to_earlier, to_later = (-distance, away, anywhere, anywhere), (away, -distance, away, anywhere)
    biases = torch.cat([torch.stack(to_earlier, 1), torch.stack(to_later, 1)])
    for module in encoder.modules():
        if isinstance(module, UMT5Attention):
            module.relative_attention_bias.weight.copy_(biases)
    return encoder.requires_grad_(True)


def encoder_config(vocabulary_size: int) -> UMT5Config:
    """Return the configuration of a small UMT5 encoder."""
    return UMT5Config(
        vocab_size=vocabulary_size,
        d_model=WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=3,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )


def batch(
    tokenizer: PreTrainedTokenizerFast, count: int, seed: tuple[int, ...]
) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b l"], Int[Tensor, "b properties"], Int[Tensor, "b l"]]:
    """Return token ids, attention mask, property classes and owners of random captions.

    The owner of a token is the object that it belongs to, 0 or 1, or `IGNORE_INDEX` if it is not a word.
    """
    random = np.random.default_rng(seed)
    captions = [random_caption(random_scene(random, TWO_OBJECT_SHARE), random) for _ in range(count)]
    tokens = tokenizer(captions, padding=True, return_tensors="pt")
    classes = torch.tensor([property_classes(parse_caption(text)) for text in captions])
    owners = torch.full_like(tokens["input_ids"], IGNORE_INDEX)
    for row, text in zip(owners, captions, strict=True):
        belongs_to_second = second_object_words(text)
        row[: len(belongs_to_second)] = torch.tensor(belongs_to_second)
    return tokens["input_ids"], tokens["attention_mask"], classes, owners


def property_classes(description: SceneDescription) -> list[int]:
    """Return the class of each property; 0 if the caption does not mention it."""
    indices = [
        _class_index(tuple(BACKGROUNDS), description.background),
        _class_index((False, True), description.striped),
    ]
    for index in range(2):
        obj = description.objects[index] if index < len(description.objects) else None
        indices += [
            _class_index(values, getattr(obj, name, None)) for name, values in OBJECT_PROPERTIES.items()
        ]
    return indices


def property_loss(
    logits: Float[Tensor, "b l classes"],
    mask: Int[Tensor, "b l"],
    classes: Int[Tensor, "b properties"],
    owners: Int[Tensor, "b l"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the mean loss over tokens and properties, and the accuracy.

    A caption counts as accurate if every token predicts every property of the scene.
    """
    predictions = logits.split(_class_counts(), dim=-1)
    labels = token_labels(mask, classes, owners)
    loss = torch.stack([_cross_entropy(*pair) for pair in zip(predictions, labels, strict=True)]).mean()
    is_correct = torch.ones_like(mask[:, 0], dtype=torch.bool)
    for prediction, label in zip(predictions[: classes.shape[1]], labels, strict=False):
        is_correct &= ((prediction.argmax(-1) == label) | (label == IGNORE_INDEX)).all(1)
    return loss, is_correct.float().mean()


def token_labels(
    mask: Int[Tensor, "b l"], classes: Int[Tensor, "b properties"], owners: Int[Tensor, "b l"]
) -> list[Int[Tensor, "b l"]]:
    """Return the labels of every token: properties of the scene, those of its own object, and its owner."""
    scene_labels = (
        classes[:, None].expand(-1, mask.shape[1], -1).masked_fill(mask[..., None] == 0, IGNORE_INDEX)
    )
    *_, first, second = classes.split([2, len(OBJECT_PROPERTIES), len(OBJECT_PROPERTIES)], dim=1)
    object_labels = torch.where(owners[..., None] == 1, second[:, None], first[:, None])
    object_labels = object_labels.masked_fill(owners[..., None] == IGNORE_INDEX, IGNORE_INDEX)
    return [*scene_labels.unbind(-1), *object_labels.unbind(-1), owners]


def _cross_entropy(logits: Float[Tensor, "b l classes"], labels: Int[Tensor, "b l"]) -> Float[Tensor, ""]:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)


def _class_counts() -> list[int]:
    per_object = [len(values) + 1 for values in OBJECT_PROPERTIES.values()]
    return [len(BACKGROUNDS) + 1, 3, *per_object, *per_object, *per_object, 2]


def _class_index(values: tuple[object, ...], value: object) -> int:
    return 0 if value is None else 1 + values.index(value)


if __name__ == "__main__":
    main()
