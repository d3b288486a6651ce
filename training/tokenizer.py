"""The tokenizer of the pocket checkpoint: one token for each word of the captions, in UMT5's format.

Case and punctuation are ignored.
"""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from training.captions import vocabulary

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORD_SCORE, LETTER_SCORE = -5.0, -20.0


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a Unigram tokenizer with a piece for each caption word, and letters to spell other words."""
    pieces = [(piece, 0.0) for piece in (PAD, END, UNKNOWN)]
    pieces += [(f"▁{word}", WORD_SCORE) for word in vocabulary()]
    pieces += [(letter, LETTER_SCORE) for letter in ("▁", *LETTERS)]
    pieces = list(dict(pieces).items())
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[^a-z0-9]+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=512,
    )
