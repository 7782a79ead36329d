"""Random-weight models of the real shapes, for speed alone.  python make_models.py SHAPE OUTPUT_DIR"""
import sys

import torch
from transformers import RobertaConfig, RobertaForSequenceClassification, T5Config, T5ForConditionalGeneration

shape, output = sys.argv[1:]
torch.manual_seed(0)
if shape.startswith("roberta"):
    size = {
        "roberta-base": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
        "roberta-large": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    }[shape]
    config = RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=1,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, **size,
    )
    model = RobertaForSequenceClassification(config)
else:
    size = {
        "flan-t5-small": dict(d_model=512, d_ff=1024, num_layers=8, num_decoder_layers=8, num_heads=6),
        "flan-t5-base": dict(d_model=768, d_ff=2048, num_layers=12, num_decoder_layers=12, num_heads=12),
    }[shape]
    config = T5Config(
        vocab_size=32128, d_kv=64, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **size,
    )
    model = T5ForConditionalGeneration(config)
model.eval().save_pretrained(output)
