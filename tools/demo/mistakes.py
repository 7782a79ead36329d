"""Mistakes of a careless writer: what makes demonstrations noisy and pretraining candidates imperfect."""

from random import Random

Words = list[str]


def stop_early(rng: Random, words: Words) -> Words:
    """Keep about the first half."""
    return words[: max(1, (len(words) + rng.randint(0, 1)) // 2)]


def skip_one(rng: Random, words: Words) -> Words:
    position = rng.randrange(len(words))
    return words[:position] + words[position + 1 :] or words


def repeat_one(rng: Random, words: Words) -> Words:
    source, place = rng.randrange(len(words)), rng.randint(0, len(words))
    return words[:place] + [words[source]] + words[place:]


def swap_two(rng: Random, words: Words) -> Words:
    swapped = words[:]
    first, second = rng.randrange(len(words)), rng.randrange(len(words))
    swapped[first], swapped[second] = swapped[second], swapped[first]
    return swapped


def overwrite_one(rng: Random, words: Words) -> Words:
    """One word is written over by another of the same answer."""
    changed = words[:]
    changed[rng.randrange(len(words))] = rng.choice(words)
    return changed


def replace_one(rng: Random, words: Words, others: Words) -> Words:
    changed = words[:]
    changed[rng.randrange(len(words))] = rng.choice(others)
    return changed


def slip(rng: Random, words: Words, others: Words) -> Words:
    """One random mistake; `others` are the words that may intrude."""
    kind = rng.randrange(6)
    if kind == 5:
        return replace_one(rng, words, others)
    return (stop_early, skip_one, repeat_one, swap_two, overwrite_one)[kind](rng, words)
