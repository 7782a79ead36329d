"""A tiny random language model in llama.cpp's format, for servers under test.  python make_gguf.py tiny.gguf"""
import sys

import gguf
import numpy as np

WIDTH, HEADS, INNER = 32, 2, 64
rng = np.random.default_rng(0)
words = "the a of to and in is it you that he was for on are with as his they be at one have this".split()
tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581" + word for word in words]
kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(words)

writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_name("tiny")
writer.add_context_length(512)
writer.add_embedding_length(WIDTH)
writer.add_block_count(1)
writer.add_feed_forward_length(INNER)
writer.add_head_count(HEADS)
writer.add_head_count_kv(HEADS)
writer.add_rope_dimension_count(WIDTH // HEADS)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(len(tokens))
writer.add_tokenizer_model("llama")
writer.add_token_list(tokens)
writer.add_token_scores([0.0] * 259 + [-float(place) for place in range(len(words))])
writer.add_token_types(kinds)
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_unk_token_id(0)


def put(name, *shape):
    value = np.ones(shape) if "norm" in name else rng.normal(0, 0.3, shape)
    writer.add_tensor(name, value.astype(np.float32))


put("token_embd.weight", len(tokens), WIDTH)
for part in ["attn_q", "attn_k", "attn_v", "attn_output"]:
    put(f"blk.0.{part}.weight", WIDTH, WIDTH)
put("blk.0.attn_norm.weight", WIDTH)
put("blk.0.ffn_norm.weight", WIDTH)
put("blk.0.ffn_gate.weight", INNER, WIDTH)
put("blk.0.ffn_up.weight", INNER, WIDTH)
put("blk.0.ffn_down.weight", WIDTH, INNER)
put("output_norm.weight", WIDTH)
# Bytes and ends are unlikely, so that answers are words.
output = rng.normal(0, 0.3, (len(tokens), WIDTH))
output[:259] *= 0.1
writer.add_tensor("output.weight", output.astype(np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
