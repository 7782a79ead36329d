"""Rows that are easy to get wrong: empty, long enough to be cut, Unicode, odd white space."""

import random

WORDS = "the a cat dog sat ran on under red blue house tree counts seven nine add up these letters in order".split()
ODD = ["", " ", "naïve café — “quoted”…", "日本語の文章です。", "🙂👍🏽 emoji", "tabs\tand\nlines", "x" * 40, "e\u0301 combined"]


def sentence(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def pairs(seed=1):
    """Instructions and responses; some longer than 512 tokens on either side."""
    rng = random.Random(seed)
    out = [(sentence(rng, rng.randint(1, 60)), sentence(rng, rng.randint(1, 20))) for _ in range(24)]
    out += [(text, sentence(rng, 5)) for text in ODD] + [(sentence(rng, 5), text) for text in ODD]
    out += [(sentence(rng, 900), sentence(rng, 10)), (sentence(rng, 10), sentence(rng, 900))]
    return out + [(sentence(rng, 700), sentence(rng, 700))]


def sources(seed=2):
    """Instructions for a generator."""
    rng = random.Random(seed)
    return [sentence(rng, rng.randint(1, 50)) for _ in range(16)] + ODD + [sentence(rng, 800)]


def labelled(seed=3, rows=320):
    """Labelled pairs for fine-tuning."""
    rng = random.Random(seed)
    return [(sentence(rng, rng.randint(1, 30)), sentence(rng, rng.randint(1, 8)), round(rng.random(), 4)) for _ in range(rows)]
