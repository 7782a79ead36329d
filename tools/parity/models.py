"""Small random models with tokenizers of their own, saved as a hub checkpoint is."""

import torch
from tokenizers import ByteLevelBPETokenizer, SentencePieceUnigramTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import rows

CORPUS = [" ".join(pair) for pair in rows.pairs(7)] + rows.sources(8)


def make_scorer(folder):
    """RoBERTa's architecture, two layers, one label, 512 tokens a pair."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(CORPUS, vocab_size=600, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    folder.mkdir(parents=True)
    bpe.save_model(str(folder))
    tokenizer = RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=512)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=1, initializer_range=0.2,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)


def make_generator(folder):
    """FLAN-T5's architecture (gated GELU, own head), two layers each way."""
    unigram = SentencePieceUnigramTokenizer()
    unigram.train_from_iterator(CORPUS, vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    unigram.post_processor = TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=unigram._tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, initializer_factor=4.0,
    )
    model = T5ForConditionalGeneration(config)
    # Peaked enough that rows end at different lengths.
    model.lm_head.weight.data.normal_(0, 0.4)
    model.save_pretrained(folder)
