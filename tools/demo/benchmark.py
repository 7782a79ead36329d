"""Writes the demo benchmark in BIG-bench's JSON format, and reads back the instructions it holds."""

import json
from pathlib import Path
from random import Random

from tasks import TASKS

SEED = 20231111
EXAMPLES_PER_TASK = 200


def examples(task) -> list[tuple[str, str]]:
    """Distinct examples of one task, the same at every call."""
    rng = Random(f"{SEED} {task.name}")
    found: dict[str, str] = {}
    while len(found) < EXAMPLES_PER_TASK:
        question, answer = task.sample(rng)
        found.setdefault(question, answer)
    return list(found.items())


def instructions() -> set[str]:
    """Every instruction of the benchmark: what no training stream may contain."""
    return {task.instruction(question) for task in TASKS for question, _ in examples(task)}


def write(directory: Path) -> None:
    """One `<task>/task.json` per task."""
    for task in TASKS:
        document = {
            "name": task.name,
            "description": task.description,
            "keywords": list(task.keywords),
            "metrics": ["rouge"],
            "preferred_score": "rougeLsum",
            "task_prefix": task.prefix,
            "example_input_prefix": "\nQ: ",
            "example_output_prefix": "\nA:",
            "examples": [{"input": question, "target": answer} for question, answer in examples(task)],
        }
        folder = directory / task.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "task.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
