"""The pocket checkpoint's tokenizer: the words of the grammar, in UMT5's layout.

`training.text` writes it into the checkpoint. Case and punctuation do not count.
"""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from training.captions import vocabulary

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORD_SCORE, LETTER_SCORE = -5.0, -20.0


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One piece for each word of the grammar, and letters for other words."""
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
