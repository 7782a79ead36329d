"""Trains the demo generator: a small T5 v1.1 on noisy demonstrations of the six benchmark tasks."""

import time
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from transformers import T5Config, T5ForConditionalGeneration

from benchmark import instructions
from demonstrations import HURRIED, MIXED, stream
from export import save_model
from tokenizers_of_demo import generator_tokenizer

SEED = 1
Leg = tuple[int, float, dict[str, float]]
PAD, END = 0, 1
# steps, peak rate and writers of each leg, which has its own schedule
LEGS = ((2500, 2e-3, MIXED), (3000, 2e-3, MIXED), (800, 1e-3, HURRIED))
BATCH, WARMUP_STEPS = 64, 200


def configuration(vocabulary_size: int) -> T5Config:
    """T5 v1.1: gated GELU, untied output embedding."""
    return T5Config(
        vocab_size=vocabulary_size, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0,
        pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD,
    )  # fmt: skip


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then linear decay to zero."""
    return peak * min((step + 1) / WARMUP_STEPS, (steps - step) / max(1, steps - WARMUP_STEPS))


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def train(directory: Path, legs: tuple[Leg, ...] = LEGS, done: int = 0) -> None:
    """Trains for `legs` and writes the model's folder to `directory`, from which it goes on if `done` legs are there."""
    tokenizer = generator_tokenizer()
    for leg, (steps, peak, writers) in list(enumerate(legs))[done:]:
        torch.manual_seed(SEED + leg)
        if leg == 0:
            model = T5ForConditionalGeneration(configuration(tokenizer.get_vocab_size()))
        else:
            model = T5ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
        rows = stream(Random(SEED + leg), instructions(), writers)
        run_leg(model, tokenizer, rows, steps, peak, directory)


def run_leg(
    model: T5ForConditionalGeneration, tokenizer: Tokenizer, rows, steps: int, peak: float, directory: Path
) -> None:
    """`steps` updates under one schedule, saved every 500 steps and at the end."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.98))
    started, recent = time.monotonic(), []
    for step in range(steps):
        batch = [next(rows) for _ in range(BATCH)]
        sources = padded([tokenizer.encode(source).ids for source, _ in batch], PAD)
        targets = padded([tokenizer.encode(target).ids for _, target in batch], -100)
        loss = model(input_ids=sources, attention_mask=sources.ne(PAD).long(), labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"generator step {step + 1} loss {sum(recent) / len(recent):.4f} {time.monotonic() - started:.0f} s", flush=True)
            recent = []
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save_model(model, tokenizer, directory, eos="</s>", pad="<pad>", unk="<unk>")
