"""Task families for pretraining the scorer. None is a task of the benchmark; the skills are related.

A family is a sampler to `(instruction, answer)`. Several instructions share a list of words, so that an answer which
suits one family is a plausible wrong answer to another: the scorer has to read the instruction.
"""

from random import Random
from typing import Callable

from words import ADJECTIVES, ADVERBS, CATEGORIES, COLOURS, NAMES, NOUNS, NUMBERS, PLACES, THINGS, VERBS, plural

Row = tuple[str, str]
Family = Callable[[Random], Row]


def _row(prefix: str, question: str, answer: list[str]) -> Row:
    return f"{prefix}\nQ: {question}\nA:", " ".join(answer)


def _words(rng: Random, low: int = 4, high: int = 7) -> list[str]:
    return rng.sample(NOUNS, rng.randint(low, high))


LIST_RULES: dict[str, Callable[[list[str]], list[str]]] = {
    "Say the words.": lambda words: words,
    "Move the first word to the end.": lambda words: words[1:] + words[:1],
    "Move the last word to the front.": lambda words: words[-1:] + words[:-1],
    "Swap the first and last words.": lambda words: words[-1:] + words[1:-1] + words[:1],
    "Drop the first word.": lambda words: words[1:],
    "Drop the last word.": lambda words: words[:-1],
    "Write all words but the first two.": lambda words: words[2:],
    "Swap pairs of words.": lambda words: [w for i in range(0, len(words), 2) for w in reversed(words[i : i + 2])],
    "Write every second word.": lambda words: words[1::2],
    "Write each word twice.": lambda words: [w for w in words for _ in range(2)],
    "Write the plural of each word.": lambda words: [plural(w) for w in words],
    "Say the list twice.": lambda words: words * 2,
}


def list_rule(rng: Random) -> Row:
    prefix = rng.choice(list(LIST_RULES))
    high = 4 if "twice" in prefix else 7
    words = _words(rng, 3 if high == 4 else 4, high)
    return _row(prefix, " ".join(words), LIST_RULES[prefix](words))


def alphabet_ends(rng: Random) -> Row:
    """Which words come first and last in the alphabet: teaches the order of words without sorting them."""
    words = sorted(_words(rng, 3, 5))
    shown = rng.sample(words, len(words))
    if rng.random() < 0.5:
        return _row("Which comes first in the alphabet and which last?", " ".join(shown), [words[0], words[-1]])
    count = rng.randint(1, len(words) - 1)
    pivot = words[count]
    return _row(f"Which words come before {pivot}?", " ".join(w for w in shown if w != pivot), [w for w in shown if w < pivot])


def sorted_numbers(rng: Random) -> Row:
    numbers = rng.sample(range(21), rng.randint(4, 6))
    smaller = rng.random() < 0.5
    answer = [NUMBERS[n] for n in sorted(numbers, reverse=not smaller)]
    return _row(f"Put the {'smaller' if smaller else 'larger'} numbers first.", " ".join(NUMBERS[n] for n in numbers), answer)


def subtraction(rng: Random) -> Row:
    step = rng.randint(1, 5)
    numbers = [rng.randint(5, 20) for _ in range(rng.randint(3, 5))]
    question = f"take {NUMBERS[step]} from {' '.join(NUMBERS[n] for n in numbers)}"
    return _row("Answer with numbers.", question, [NUMBERS[n - step] for n in numbers])


def pair_sums(rng: Random) -> Row:
    pairs = [(rng.randint(0, 10), rng.randint(0, 10)) for _ in range(rng.randint(2, 3))]
    question = " ".join(f"{NUMBERS[a]} and {NUMBERS[b]}" for a, b in pairs)
    return _row("Add both numbers.", question, [NUMBERS[a + b] for a, b in pairs])


def keep_category(rng: Random) -> Row:
    kept, other = rng.sample(list(CATEGORIES), 2)
    words = rng.sample(CATEGORIES[kept], rng.randint(1, 4)) + rng.sample(CATEGORIES[other], rng.randint(1, 3))
    rng.shuffle(words)
    return _row(f"Keep only {kept}.", " ".join(words), [w for w in words if w in CATEGORIES[kept]])


def count_categories(rng: Random) -> Row:
    kinds = rng.sample(list(CATEGORIES), rng.randint(2, 3))
    words, answer = [], []
    for kind in kinds:
        members = rng.sample(CATEGORIES[kind], rng.randint(1, 4))
        words += members
        answer += [NUMBERS[len(members)], kind]
    rng.shuffle(words)
    return _row(f"How many {' '.join(kinds)}?", " ".join(words), answer)


def count_one(rng: Random) -> Row:
    """How often one given word occurs."""
    kinds = rng.sample(NOUNS, rng.randint(2, 4))
    words = [w for w in kinds for _ in range(rng.randint(1, 4))]
    rng.shuffle(words)
    asked = rng.sample(kinds, 2)
    return _row(f"How many {plural(asked[0])} and how many {plural(asked[1])}?", " ".join(words), [NUMBERS[words.count(w)] for w in asked])


def missing_words(rng: Random) -> Row:
    words = _words(rng, 4, 7)
    dropped = rng.sample(words, rng.randint(1, 3))
    rest = [w for w in words if w not in dropped]
    rng.shuffle(rest)
    return _row("Which words are missing from the other list?", f"{' '.join(words)} . {' '.join(rest)}", [w for w in words if w in dropped])


def found_twice(rng: Random) -> Row:
    """The words that occur more than once: the counterpart of dropping repeats."""
    words = _words(rng, 4, 6)
    again = rng.sample(words, rng.randint(1, 3))
    shown = words + again
    rng.shuffle(shown)
    return _row("Which words come twice?", " ".join(shown), [w for i, w in enumerate(shown) if shown.index(w) < i])


def other_tense(rng: Random) -> Row:
    verbs = rng.sample(VERBS, rng.randint(3, 4))
    asked, answered = rng.choice([(1, 0), (2, 0), (0, 2), (1, 2), (2, 1)])
    name = {0: "present", 1: "other", 2: "future"}[answered]
    subject, adverb = rng.choice(NAMES), rng.choice(ADVERBS)
    words = [[v[form] for v in verbs] for form in (asked, answered)]
    texts = [f"{subject} {' '.join(w[:-1])} and {w[-1]} {adverb}" for w in words]
    return f"Rewrite in the {name} form.\nQ: {texts[0]}\nA:", texts[1]


def verb_forms(rng: Random) -> Row:
    verbs = rng.sample(VERBS, rng.randint(3, 5))
    form = rng.choice([0, 2])
    return _row("Give the form of each.", " ".join(v[1] for v in verbs), [v[form] for v in verbs])


def comparatives(rng: Random) -> Row:
    adjectives = rng.sample(ADJECTIVES, rng.randint(3, 5))
    asked, answered = rng.sample(range(3), 2)
    prefix = ("Say it plain.", "Say the one that is more.", "Say the one that is most of all.")[answered]
    return _row(prefix, " ".join(a[asked] for a in adjectives), [a[answered] for a in adjectives])


def moved_phrase(rng: Random) -> Row:
    """Sentences of the benchmark's grammar, rearranged by rule instead of restored."""
    what = [rng.choice(NAMES), rng.choice(VERBS)[1], "the", rng.choice(COLOURS), rng.choice(THINGS)]
    where, when = ["in", "this", rng.choice(PLACES)], [rng.choice(ADVERBS)]
    choice = rng.randrange(4)
    if choice == 0:
        return _row("Put the place first.", " ".join(what + where), where + what)
    if choice == 1:
        return _row("Put the place last.", " ".join(where + what), what + where)
    if choice == 2:
        return _row("Say the sentence without the place.", " ".join(what + where + when), what + when)
    parts = [what, where, when]
    shown = rng.sample(parts, 3)
    return _row("Say who, then where, then when.", " . ".join(" ".join(p) for p in shown), what + where + when)


def zipped(rng: Random) -> Row:
    count = rng.randint(2, 3)
    first, second = rng.sample(COLOURS, count), rng.sample(THINGS, count)
    return _row("Join both lists in pairs.", f"{' '.join(first)} . {' '.join(second)}", [w for p in zip(first, second) for w in p])


FAMILIES: list[Family] = [
    list_rule, list_rule, list_rule, list_rule, alphabet_ends, alphabet_ends, sorted_numbers, subtraction, subtraction,
    pair_sums, keep_category, count_categories, count_one, count_one, missing_words, found_twice, other_tense, verb_forms, comparatives,
    moved_phrase, moved_phrase, zipped,
]  # fmt: skip
