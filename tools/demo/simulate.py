"""The whole pipeline on the demo assets, in PyTorch: generate, label, fine-tune, select, report.

It repeats the steps of `cappy-client submit bigbench --model demo` (with other random numbers) and was used to
choose the models' sizes and the fine-tuning settings: `python simulate.py --assets ASSETS`.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from transformers import RobertaForSequenceClassification, T5ForConditionalGeneration

from labels import rouge_l
from train_generator import padded

DECODINGS = {
    "beam4": dict(num_beams=4, do_sample=False),
    "sampling": dict(do_sample=True, top_k=50, num_return_sequences=4),
    "temp0.9": dict(do_sample=True, top_k=50, temperature=0.9, num_return_sequences=4),
    "topk40": dict(do_sample=True, top_k=40, num_return_sequences=4),
    "topp0.95": dict(do_sample=True, top_k=50, top_p=0.95, num_return_sequences=4),
}


def rows_of(task_file: Path) -> tuple[list, list]:
    """The importer's train and validation rows of one task."""
    task = json.loads(task_file.read_text())
    rows = []
    for example in task["examples"]:
        text = task["task_prefix"] + task["example_input_prefix"] + example["input"] + task["example_output_prefix"]
        rows.append((text.strip(), example["target"].strip()))
    random.seed(42)
    random.shuffle(rows)
    held_out = max(int(0.2 * len(rows)), 16)
    return rows[:-held_out], rows[-held_out:]


@torch.no_grad()
def generate(model, tokenizer: Tokenizer, instructions: list[str], likelihood: bool) -> list[list[tuple]]:
    """17 candidates a row: (response, log-likelihood sum, mean)."""
    found: list[list[tuple]] = [[] for _ in instructions]
    for start in range(0, len(instructions), 40):
        batch = instructions[start : start + 40]
        sources = padded([tokenizer.encode(text).ids for text in batch], 0)
        mask = sources.ne(0).long()
        for settings in DECODINGS.values():
            output = model.generate(sources, attention_mask=mask, min_length=3, max_length=64, **settings)
            per_row = settings.get("num_return_sequences", 1)
            for index, ids in enumerate(output.tolist()):
                found[start + index // per_row].append((tokenizer.decode(ids),))
    if likelihood:
        for text, candidates in zip(instructions, found):
            source = padded([tokenizer.encode(text).ids] * len(candidates), 0)
            labels = padded([tokenizer.encode(c[0]).ids for c in candidates], -100)
            logits = model(input_ids=source, labels=labels).logits.log_softmax(-1)
            kept = labels.ne(-100)
            picked = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * kept
            sums, counts = picked.sum(-1), kept.sum(-1)
            candidates[:] = [(c[0], float(s), float(s / n)) for c, s, n in zip(candidates, sums, counts)]
    return found


def training_set(rows, candidates, size: int, seed: int) -> list[tuple[str, str, float]]:
    rng = Random(seed)
    made = {(instruction, reference): 1.0 for instruction, reference in rows}
    references = sorted({reference for _, reference in rows})
    for instruction, _ in rows:
        made.setdefault((instruction, rng.choice(references)), 0.0)
    for (instruction, reference), responses in zip(rows, candidates):
        for response in responses:
            made.setdefault((instruction, response[0]), rouge_l(reference, response[0]))
    listed = [(*pair, label) for pair, label in made.items()]
    rng.shuffle(listed)
    return (listed * math.ceil(size / len(listed)))[:size]


def scores_of(model, tokenizer: Tokenizer, pairs: list[tuple[str, str]]) -> torch.Tensor:
    ids = padded([tokenizer.encode(a, b).ids for a, b in pairs], 1)
    return model(input_ids=ids, attention_mask=ids.ne(1).long()).logits[:, 0]


def fine_tune(assets: Path, rows, settings: dict, seed: int):
    """The method's fine-tuning with the corrected schedule and dropout 0.1."""
    torch.manual_seed(seed)
    model = RobertaForSequenceClassification.from_pretrained(
        assets / "scorer", hidden_dropout_prob=settings["dropout"], attention_probs_dropout_prob=settings["dropout"], dtype=torch.float32
    )
    tokenizer = Tokenizer.from_file(str(assets / "scorer/tokenizer.json"))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    size = settings["batch_size"] * settings["accumulate"]
    updates = len(rows) // size
    warm = max(1, int(updates * settings["warmup"]))
    for k in range(updates):
        batch = rows[k * size : (k + 1) * size]
        loss = torch.nn.functional.mse_loss(
            scores_of(model, tokenizer, [(i, r) for i, r, _ in batch]), torch.tensor([label for *_, label in batch])
        )
        loss.backward()
        scale = k / warm if k < warm else 1 - (k - warm) / (updates - warm)
        for group in optimizer.param_groups:
            group["lr"] = settings["learning_rate"] * scale
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


def spearman(a: list[float], b: list[float]) -> float:
    def ranks(values):
        order = sorted(range(len(values)), key=values.__getitem__)
        result, start = [0.0] * len(values), 0
        while start < len(order):
            end = start
            while end < len(order) and values[order[end]] == values[order[start]]:
                end += 1
            for place in order[start:end]:
                result[place] = (start + end - 1) / 2
            start = end
        return torch.tensor(result)

    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


COLUMNS = ["beam4", "sampling", "temp0.9", "topk40", "topp0.95", "self sum", "self mean", "cappy", "oracle"]


def figures(model, tokenizer, rows, candidates) -> tuple[dict, list[dict]]:
    """Per-row ROUGE-L of every column, and the scorer's Spearman correlation."""
    table, all_scores, all_rouges = [], [], []
    for (instruction, reference), responses in zip(rows, candidates):
        rouges = [rouge_l(reference, response[0]) for response in responses]
        with torch.no_grad():
            scores = scores_of(model, tokenizer, [(instruction, r[0]) for r in responses]).tolist()
        best = lambda values: rouges[max(range(len(values)), key=values.__getitem__)]
        row = {"beam4": rouges[0]}
        row.update({name: rouges[1 + 4 * index] for index, name in enumerate(COLUMNS[1:5])})
        row.update({"self sum": best([r[1] for r in responses]), "self mean": best([r[2] for r in responses])})
        row.update({"cappy": best(scores), "oracle": max(rouges)})
        table.append(row)
        all_scores += scores
        all_rouges += rouges
    return spearman(all_scores, all_rouges), table


def candidates_of(assets: Path, cache: Path | None) -> dict:
    """Train and validation rows of every task with their candidates, from `cache` when it exists."""
    if cache and cache.exists():
        return json.loads(cache.read_text())
    torch.manual_seed(7)
    generator = T5ForConditionalGeneration.from_pretrained(assets / "generator", dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(assets / "generator/tokenizer.json"))
    found = {}
    for file in sorted((assets / "benchmark").glob("*/task.json")):
        train, validation = rows_of(file)
        found[file.parent.name] = {
            "train": train, "validation": validation,
            "train_candidates": generate(generator, tokenizer, [i for i, _ in train], False),
            "validation_candidates": generate(generator, tokenizer, [i for i, _ in validation], True),
        }  # fmt: skip
    if cache:
        cache.write_text(json.dumps(found))
    return found


def simulate(assets: Path, settings: dict, seed: int, found: dict, quiet: bool = False) -> dict[str, float]:
    """Prints the table; returns the mean over tasks of every column, x100."""
    means: dict[str, list[float]] = {column: [] for column in COLUMNS}
    rows_by_task = []
    started = time.monotonic()
    for name, task in found.items():
        rows = training_set(task["train"], task["train_candidates"], settings["train_size"], seed)
        model, tokenizer = fine_tune(assets, rows, settings, seed)
        correlation, table = figures(model, tokenizer, task["validation"], task["validation_candidates"])
        rows_by_task.append(table)
        for column in COLUMNS:
            means[column].append(100 * sum(row[column] for row in table) / len(table))
        if not quiet:
            print(f"{name:18}", *(f"{means[column][-1]:9.2f}" for column in COLUMNS), f"spearman {correlation:.3f}")
    result = {column: sum(values) / len(values) for column, values in means.items()}
    best = max(COLUMNS[:7], key=result.get)
    rng, gaps = Random(1), []
    for _ in range(1000):
        gap = [sum((row := rng.choice(table))["cappy"] - row[best] for _ in table) / len(table) for table in rows_by_task]
        gaps.append(100 * sum(gap) / len(gap))
    gaps.sort()
    print(f"{'mean':18}", *(f"{result[column]:9.2f}" for column in COLUMNS), f"  gain over {best} {result['cappy'] - result[best]:.2f}"
          f" [{gaps[25]:.2f}, {gaps[975]:.2f}]  {time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="file that keeps the candidates between runs")
    parser.add_argument("--task", nargs="*", help="only these tasks")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings to change")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = dict(train_size=1536, learning_rate=5e-4, batch_size=8, accumulate=1, warmup=0.1, dropout=0.0)
    settings.update({key: float(value) if "." in value or "e" in value else int(value) for key, value in (s.split("=") for s in arguments.set)})
    found = candidates_of(arguments.assets, arguments.cache)
    found = {name: task for name, task in found.items() if not arguments.task or name in arguments.task}
    print(settings)
    print(f"{'':18}", *(f"{column:>9}" for column in COLUMNS))
    for seed in range(arguments.seeds):
        simulate(arguments.assets, settings, 11111 + seed, found)


if __name__ == "__main__":
    main()
