"""Pretrains the demo scorer: a small RoBERTa regressor on candidates of held-out task families."""

import time
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from transformers import RobertaConfig, RobertaForSequenceClassification

from export import save_model
from families import FAMILIES, LIST_RULES
from labels import rouge_l
from mistakes import slip
from tasks import TASKS
from tokenizers_of_demo import scorer_tokenizer
from words import ADJECTIVES, NOUNS, NUMBERS, VERBS

SEED = 2
BEGIN, PAD, END = 0, 1, 2
LEGS, BATCH = ((3000, 1e-3), (900, 5e-4)), 64  # steps and peak rate of each leg, which has its own schedule
BENCHMARK_PREFIXES = tuple(task.prefix for task in TASKS)
POOL = 8
WARMUP = 0.1


def configuration(vocabulary_size: int) -> RobertaConfig:
    return RobertaConfig(
        vocab_size=vocabulary_size, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=514, type_vocab_size=1, num_labels=1, problem_type="regression",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=1e-5, hidden_act="gelu",
        bos_token_id=BEGIN, pad_token_id=PAD, eos_token_id=END,
    )  # fmt: skip


@torch.no_grad()
def prepare_to_match(model: RobertaForSequenceClassification) -> None:
    """Starts attention as a matcher of equal words, which a judge of lists would otherwise take long to discover.

    In the first two layers keys and queries are the same orthonormal projection, and words weigh more than places.
    """
    model.roberta.embeddings.word_embeddings.weight.mul_(3.0)
    for layer in model.roberta.encoder.layer[:2]:
        attention = layer.attention.self
        torch.nn.init.orthogonal_(attention.query.weight)
        attention.key.weight.copy_(attention.query.weight)


def intruders(answer: list[str]) -> list[str]:
    """Words of the kind that the answer is made of."""
    if answer[0] in NUMBERS:
        return NUMBERS
    if any(answer[0] in verb for verb in VERBS):
        return [form for verb in VERBS for form in verb]
    return [form for adjective in ADJECTIVES for form in adjective] if any(answer[0] in a for a in ADJECTIVES) else NOUNS


def drift(rng: Random, answer: list[str], question: list[str]) -> list[str]:
    """Right for a while, then words of the answer and of the question as they come."""
    kept = rng.randint(0, len(answer) - 1)
    length = max(1, len(answer) - kept + rng.randint(-2, 1))
    return answer[:kept] + rng.choices(answer + question if rng.random() < 0.5 else answer, k=length)


def candidate(rng: Random, instruction: str, answer: str) -> str:
    """A response as a weak generator would give it: right, nearly right, adrift, beside the point, or a copy."""
    question = instruction.split("Q: ")[1].split("\nA:")[0].replace(" .", "").split()
    words = answer.split()
    kind = rng.choices(
        ["right", "of another task", "copy", "by another rule", "shuffled", "adrift", "slips"], [15, 5, 5, 10, 8, 27, 30]
    )[0]
    if kind == "of another task":
        return rng.choice(FAMILIES)(rng)[1]
    if kind == "copy":
        words = question
    elif kind == "by another rule" and question[0] in NOUNS:
        words = LIST_RULES[rng.choice(list(LIST_RULES))](question) or words
    elif kind == "shuffled":
        rng.shuffle(words)
    elif kind == "adrift":
        words = drift(rng, words, question)
    slips = rng.randint(1, 3) if kind == "slips" else rng.choice([0, 0, 1]) if kind != "right" else 0
    for _ in range(slips):
        words = slip(rng, words, question if rng.random() < 0.3 else intruders(words))
    return " ".join(words)


def example(rng: Random) -> tuple[str, str, float]:
    """One (instruction, response, label) row; a row of a benchmark task would be a mistake in `families.py`."""
    instruction, answer = rng.choice(FAMILIES)(rng)
    assert not instruction.startswith(BENCHMARK_PREFIXES), instruction
    response = candidate(rng, instruction, answer)
    return instruction, response, rouge_l(answer, response)


def batches(rng: Random):
    """Endless batches of rows of about one length: less padding, and within `POOL` batches any order."""
    while True:
        rows = sorted((example(rng) for _ in range(POOL * BATCH)), key=lambda row: len(row[0].split()) + len(row[1].split()))
        starts = list(range(0, len(rows), BATCH))
        rng.shuffle(starts)
        yield from (rows[start : start + BATCH] for start in starts)


def rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over a tenth of the steps, then linear decay to zero."""
    warm = max(1, int(WARMUP * steps))
    return peak * min((step + 1) / warm, (steps - step) / max(1, steps - warm))


def train(directory: Path, legs: tuple[tuple[int, float], ...] = LEGS, done: int = 0) -> None:
    """Trains for `legs` and writes the model's folder to `directory`, from which it goes on if `done` legs are there."""
    tokenizer = scorer_tokenizer()
    for leg, (steps, peak) in list(enumerate(legs))[done:]:
        torch.manual_seed(SEED + leg)
        if leg == 0:
            model = RobertaForSequenceClassification(configuration(tokenizer.get_vocab_size()))
            prepare_to_match(model)
        else:
            model = RobertaForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
        run_leg(model, tokenizer, Random(SEED + leg), steps, peak, directory)


def run_leg(
    model: RobertaForSequenceClassification, tokenizer: Tokenizer, rng: Random, steps: int, peak: float, directory: Path
) -> None:
    """`steps` updates under one schedule, saved every 300 steps and at the end."""
    model.train()
    tokenizer.enable_padding(pad_id=PAD, pad_token="<pad>")
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.98))
    started, recent = time.monotonic(), []
    for step, rows in zip(range(steps), batches(rng)):
        encoded = tokenizer.encode_batch([(instruction, response) for instruction, response, _ in rows])
        ids = torch.tensor([row.ids for row in encoded])
        labels = torch.tensor([label for _, _, label in rows])
        scores = model(input_ids=ids, attention_mask=ids.ne(PAD).long()).logits[:, 0]
        loss = torch.nn.functional.mse_loss(scores, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"scorer step {step + 1} loss {sum(recent) / len(recent):.4f} {time.monotonic() - started:.0f} s", flush=True)
            recent = []
        if (step + 1) % 300 == 0 or step + 1 == steps:
            tokenizer.no_padding()
            save_model(model, tokenizer, directory, bos="<s>", cls="<s>", sep="</s>", eos="</s>", pad="<pad>", unk="<unk>")
            tokenizer.enable_padding(pad_id=PAD, pad_token="<pad>")
