"""The six tasks of the demo benchmark: what BIG-bench's JSON says of each, and a sampler of its examples.

A sampler maps a `random.Random` to `(input, target)`, both lowercase words separated by single spaces.
"""

from dataclasses import dataclass
from random import Random
from typing import Callable

from words import ADVERBS, COLOURS, NAMES, NOUNS, NUMBERS, PLACES, THINGS, VERBS

Example = tuple[str, str]


@dataclass(frozen=True)
class Task:
    """One benchmark task; `prefix` is BIG-bench's `task_prefix`."""

    name: str
    prefix: str
    description: str
    keywords: tuple[str, ...]
    sample: Callable[[Random], Example]

    def instruction(self, text: str) -> str:
        """The instruction as the BIG-bench importer builds it from the default prefixes."""
        return f"{self.prefix}\nQ: {text}\nA:"


def sort_words(rng: Random) -> Example:
    words = rng.sample(NOUNS, rng.randint(4, 6))
    return " ".join(words), " ".join(sorted(words))


def count_words(rng: Random) -> Example:
    kinds = rng.sample(NOUNS, rng.randint(2, 4))
    words = [word for word in kinds for _ in range(rng.randint(1, 4))]
    rng.shuffle(words)
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return " ".join(words), " ".join(f"{NUMBERS[count]} {word}" for word, count in counts.items())


def past_tense(rng: Random) -> Example:
    verbs = rng.sample(VERBS, rng.randint(3, 4))
    subject, adverb = rng.choice(NAMES), rng.choice(ADVERBS)

    def sentence(form: int) -> str:
        forms = [verb[form] for verb in verbs]
        return f"{subject} {' '.join(forms[:-1])} and {forms[-1]} {adverb}"

    return sentence(0), sentence(1)


def unscramble(rng: Random) -> Example:
    words = [rng.choice(NAMES), rng.choice(VERBS)[1], "the", rng.choice(COLOURS), rng.choice(THINGS), "in", "this", rng.choice(PLACES)]
    if rng.random() < 0.5:
        words.append(rng.choice(ADVERBS))
    if rng.random() < 0.4:
        words.remove(words[3])
    scrambled = words[:]
    rng.shuffle(scrambled)
    return " ".join(scrambled), " ".join(words)


def list_functions(rng: Random) -> Example:
    if rng.random() < 0.5:
        words = rng.sample(NOUNS, rng.randint(4, 6))
        return f"reverse: {' '.join(words)}", " ".join(reversed(words))
    kinds = rng.sample(NOUNS, rng.randint(3, 5))
    words = kinds + rng.choices(kinds, k=rng.randint(2, 3))
    rng.shuffle(words)
    return f"unique: {' '.join(words)}", " ".join(dict.fromkeys(words))


def small_arithmetic(rng: Random) -> Example:
    step = rng.randint(1, 5)
    numbers = [rng.randint(0, 15) for _ in range(rng.randint(4, 5))]
    asked, answered = ([NUMBERS[n + shift] for n in numbers] for shift in (0, step))
    return f"add {NUMBERS[step]} to {' '.join(asked)}", " ".join(answered)


TASKS = [
    Task("sort_words", "Sort the words.", "Put four to six nouns in alphabetical order", ("algorithms", "word order"), sort_words),
    Task("count_words", "Count each word.", "Say how often each word occurs, in order of first appearance", ("counting", "numerical response"), count_words),
    Task("past_tense", "Rewrite in the past tense.", "Rewrite a sentence of several verbs in the past tense", ("grammar", "morphology"), past_tense),
    Task("unscramble", "Put the words in order.", "Restore the order of the words of a sentence", ("word order", "grammar"), unscramble),
    Task("list_functions", "Write the list.", "Reverse a list of words or drop its repeated words", ("algorithms", "program synthesis"), list_functions),
    Task("small_arithmetic", "Do this to each number.", "Add a small number to every number of a list, in words", ("arithmetic", "numerical response"), small_arithmetic),
]
