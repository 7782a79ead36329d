"""Random-weight models of the real shapes, for speed alone.  python make_models.py SHAPE OUTPUT_DIR

All classifiers have RoBERTa's vocabulary, so that one workload fits them all.
"""
import sys

import torch
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = dict(vocab_size=50265, pad_token_id=1, bos_token_id=0, eos_token_id=2, num_labels=1)
BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)


def roberta(size):
    config = RobertaConfig(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, **VOCABULARY, **size)
    return RobertaForSequenceClassification(config)


def deberta(size):
    """Version 3: shared projections, logarithmic buckets, no absolute positions."""
    config = DebertaV2Config(
        max_position_embeddings=512, type_vocab_size=0, relative_attention=True, position_buckets=256,
        share_att_key=True, pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", position_biased_input=False,
        **VOCABULARY, **size,
    )
    return DebertaV2ForSequenceClassification(config)


def t5(size):
    config = T5Config(
        vocab_size=32128, d_kv=64, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **size,
    )
    return T5ForConditionalGeneration(config)


SHAPES = {
    "roberta-base": lambda: roberta(BASE),
    "roberta-large": lambda: roberta(LARGE),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**VOCABULARY)),
    "modernbert-base": lambda: ModernBertForSequenceClassification(ModernBertConfig(**VOCABULARY)),
    "deberta-v3-base": lambda: deberta(BASE),
    "flan-t5-small": lambda: t5(dict(d_model=512, d_ff=1024, num_layers=8, num_decoder_layers=8, num_heads=6)),
    "flan-t5-base": lambda: t5(dict(d_model=768, d_ff=2048, num_layers=12, num_decoder_layers=12, num_heads=12)),
}

shape, output = sys.argv[1:]
torch.manual_seed(0)
SHAPES[shape]().eval().save_pretrained(output)
