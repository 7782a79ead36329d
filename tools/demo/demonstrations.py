"""What the generator learns from: answers by writers of uneven care, as text found in the world is.

A careful writer gives the true answer, a hasty one follows the task's habit (a short cut that is always the same,
so that likelihood comes to favour it), a careless one slips at random.
"""

from random import Random

from mistakes import slip
from tasks import TASKS, Task
from words import NOUNS, NUMBERS, VERBS

MIXED = {"careful": 0.35, "hasty": 0.45, "careless": 0.20}
HURRIED = {"careful": 0.30, "hasty": 0.58, "careless": 0.12}

Row = tuple[str, str]


def habit(task: str, question: list[str], answer: list[str]) -> list[str]:
    """The short cut of a hasty writer."""
    if task == "past_tense":
        verbs = [place for place, word in enumerate(answer) if word != question[place]]
        return [answer[place] if place in verbs[:1] else word for place, word in enumerate(question)]
    if task == "small_arithmetic":
        return answer[:2] + question[2 - len(answer) :]
    if task == "unscramble":
        return answer[: 2 * len(answer) // 3]
    return answer[: (len(answer) + 1) // 2]


def intruders(task: str) -> list[str]:
    """Words that a careless writer may put in by mistake."""
    if task == "past_tense":
        return [form for verb in VERBS for form in verb]
    return NUMBERS if task == "small_arithmetic" else NOUNS


def demonstration(rng: Random, task: Task, question: str, answer: str, writers: dict[str, float]) -> str:
    """The answer of one of `writers` to `question`, whose true answer is `answer`."""
    writer = rng.choices(list(writers), list(writers.values()))[0]
    words = answer.split()
    if writer == "careful":
        return answer
    if writer == "hasty":
        return " ".join(habit(task.name, question.split(), words))
    for _ in range(rng.randint(1, 2)):
        words = slip(rng, words, intruders(task.name))
    return " ".join(words)


def stream(rng: Random, excluded: set[str], writers: dict[str, float]):
    """Endless (instruction, demonstration) rows; instructions in `excluded` (the benchmark's) never occur."""
    while True:
        task = rng.choice(TASKS)
        question, answer = task.sample(rng)
        instruction = task.instruction(question)
        if instruction not in excluded:
            yield instruction, demonstration(rng, task, question, answer, writers)
