"""Zero-shot accuracy with transformers, to compare `cappy-client submit promptsource` with.

    python tools/parity/promptsource.py rows --output tests/fixtures/promptsource/rows.jsonl
    python tools/parity/promptsource.py score --rows tests/fixtures/promptsource/rows.jsonl \\
        --scorer demo/assets/scorer --output tests/fixtures/promptsource/expected.json

`rows` renders a small test file of the project's own making: three classification tasks over the demo benchmark's
words, two prompts each, in the row format of the reference implementation. `score` measures any such file with any
sequence classifier that transformers loads, as the reference implementation does: group by (dataset, template,
example), take the response with the highest logit (the first of equals), compare it with the response labelled 1.

Needs: pip install torch 'transformers<5'
"""

import argparse
import json
import random
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "demo/assets/benchmark"
EXAMPLES = 24

# Dataset, the demo task that its questions come from, and prompts with the answer choices of an example.
TASKS = [
    ("Past tense", "past_tense", ["Put the sentence in the past tense.\nQ: {0}\nA:", "{0}\nThe same sentence in the past tense:"]),
    ("Sorted words", "sort_words", ["Sort the words.\nQ: {0}\nA:", "Which is the alphabetical order of: {0}?"]),
    ("Counted words", "count_words", ["Count each word.\nQ: {0}\nA:", "How often does each word occur in: {0}?"]),
]


def wrong(words: list[str], draws: random.Random) -> str:
    """A near miss: two words change places, or one is lost or comes twice."""
    words = list(words)
    at = draws.randrange(len(words))
    kind = draws.randrange(3)
    if kind == 0 and len(words) > 1:
        other = (at + 1) % len(words)
        words[at], words[other] = words[other], words[at]
    elif kind == 1 and len(words) > 1:
        del words[at]
    else:
        words.insert(at, words[at])
    return " ".join(words)


def rows():
    draws = random.Random(11111)
    for dataset, task, prompts in TASKS:
        examples = json.loads((BENCHMARK / task / "task.json").read_text())["examples"]
        for index, example in enumerate(draws.sample(examples, EXAMPLES)):
            right = example["target"]
            choices = {right}
            while len(choices) < 3:
                choices.add(wrong(right.split(), draws))
            choices = sorted(choices)
            draws.shuffle(choices)
            for number, prompt in enumerate(prompts):
                for choice in choices:
                    yield {
                        "dataset_name": dataset,
                        "template_name": f"prompt {number + 1}",
                        "example_idx": index,
                        "instruction": prompt.format(example["input"]),
                        "response": choice,
                        "label": int(choice == right),
                    }


def score(path: Path, scorer: str) -> dict:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(scorer)
    model = AutoModelForSequenceClassification.from_pretrained(scorer).float().eval()
    groups: dict[tuple, list] = {}
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        # One pair at a time: no padding, no question of batches.
        pair = tokenizer(row["instruction"], row["response"], truncation=True, max_length=512, return_tensors="pt")
        with torch.no_grad():
            logit = model(**pair).logits[0][0].item()
        key = row["dataset_name"], row["template_name"], row["example_idx"]
        groups.setdefault(key, []).append((logit, row["response"], row["label"]))
    right: dict[str, list[bool]] = {}
    gaps = []
    for (dataset, _, _), responses in groups.items():
        # `max` keeps the first of equals.
        best = max(responses, key=lambda response: response[0])
        right.setdefault(dataset, []).append(any(best[1] == text for _, text, label in responses if label == 1))
        logits = sorted(logit for logit, _, _ in responses)
        gaps.append(logits[-1] - logits[-2])
    accuracy = {dataset: sum(hits) / len(hits) for dataset, hits in right.items()}
    return {
        "rows": len(rows),
        "groups": len(groups),
        "accuracy": accuracy,
        "average": sum(accuracy.values()) / len(accuracy),
        # How far the closest decision was from another: rounding must stay below.
        "smallest_gap": min(gaps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("rows", help="render the test file")
    make.add_argument("--output", type=Path, required=True)
    measure = verbs.add_parser("score", help="measure a test file with transformers")
    measure.add_argument("--rows", type=Path, required=True)
    measure.add_argument("--scorer", required=True, help="directory or hub id of a sequence classifier")
    measure.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.verb == "rows":
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    else:
        found = score(arguments.rows, arguments.scorer)
        arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
