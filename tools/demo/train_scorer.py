"""Pretrains the demo scorer: a small RoBERTa regressor on candidates of held-out task families."""

import time
from pathlib import Path
from random import Random

import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from export import save_model
from families import FAMILIES, LIST_RULES
from labels import rouge_l
from mistakes import slip
from tokenizers_of_demo import scorer_tokenizer
from words import ADJECTIVES, NOUNS, NUMBERS, VERBS

SEED = 2
BEGIN, PAD, END = 0, 1, 2
STEPS, BATCH = 8000, 64
PEAK_RATE, WARMUP = 1e-3, 300


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


def candidate(rng: Random, instruction: str, answer: str) -> str:
    """A response as a weak generator would give it: right, nearly right, beside the point, or a copy."""
    kind = rng.random()
    if kind < 0.2:
        return answer
    if kind < 0.27:
        return rng.choice(FAMILIES)(rng)[1]
    question = instruction.split("Q: ")[1].split("\nA:")[0].replace(" .", "").split()
    if kind < 0.33:
        return " ".join(question)
    words = answer.split()
    if kind < 0.43 and question[0] in NOUNS:
        words = LIST_RULES[rng.choice(list(LIST_RULES))](question) or words
    elif kind < 0.55:
        rng.shuffle(words)
    for _ in range(rng.randint(0 if kind < 0.55 else 1, 3)):
        words = slip(rng, words, question if rng.random() < 0.3 else intruders(words))
    return " ".join(words)


def example(rng: Random) -> tuple[str, str, float]:
    instruction, answer = rng.choice(FAMILIES)(rng)
    response = candidate(rng, instruction, answer)
    return instruction, response, rouge_l(answer, response)


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    return PEAK_RATE * min((step + 1) / WARMUP, (steps - step) / max(1, steps - WARMUP))


def train(directory: Path, steps: int = STEPS) -> None:
    """Trains for `steps` updates and writes the model's folder to `directory`."""
    torch.manual_seed(SEED)
    tokenizer = scorer_tokenizer()
    tokenizer.enable_padding(pad_id=PAD, pad_token="<pad>")
    model = RobertaForSequenceClassification(configuration(tokenizer.get_vocab_size()))
    prepare_to_match(model)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.98))
    rng, started, recent = Random(SEED), time.monotonic(), []
    for step in range(steps):
        rows = [example(rng) for _ in range(BATCH)]
        encoded = tokenizer.encode_batch([(instruction, response) for instruction, response, _ in rows])
        ids = torch.tensor([row.ids for row in encoded])
        labels = torch.tensor([label for _, _, label in rows])
        scores = model(input_ids=ids, attention_mask=ids.ne(PAD).long()).logits[:, 0]
        loss = torch.nn.functional.mse_loss(scores, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"scorer step {step + 1} loss {sum(recent) / len(recent):.4f} {time.monotonic() - started:.0f} s", flush=True)
            recent = []
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            tokenizer.no_padding()
            save_model(model, tokenizer, directory, bos="<s>", cls="<s>", sep="</s>", eos="</s>", pad="<pad>", unk="<unk>")
            tokenizer.enable_padding(pad_id=PAD, pad_token="<pad>")
