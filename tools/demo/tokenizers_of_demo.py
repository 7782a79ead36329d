"""Tokenizers of the demo models: one piece a known word, single characters for everything else.

Both are Unigram models over the same pieces, lowercasing, with sentencepiece's `▁` for a space; they differ in
their special tokens and in the template around the text, which follow T5 and RoBERTa.
"""

import string

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from words import vocabulary

WORD_SCORE, CHARACTER_SCORE = -1.0, -10.0


def _unigram(special: list[str], unknown: str) -> Tokenizer:
    pieces = [(token, 0.0) for token in special]
    pieces += [("▁" + word, WORD_SCORE) for word in vocabulary()]
    characters = "▁" + string.ascii_lowercase + string.digits + string.punctuation
    pieces += [(character, CHARACTER_SCORE) for character in characters]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=special.index(unknown), byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.add_special_tokens(special)
    return tokenizer


def generator_tokenizer() -> Tokenizer:
    """T5's specials (`<pad>` 0, `</s>` 1, `<unk>` 2) and template: `text </s>`."""
    tokenizer = _unigram(["<pad>", "</s>", "<unk>"], "<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def scorer_tokenizer() -> Tokenizer:
    """RoBERTa's specials (`<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3) and template: `<s> A </s></s> B </s>`."""
    tokenizer = _unigram(["<s>", "<pad>", "</s>", "<unk>"], "<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer
