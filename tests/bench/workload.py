"""What both sides of a benchmark run: token ids of given lengths, the same for everyone.

Lengths are log-normal (pairs: mean about 90 tokens, 12 to 512; prompts: mean about 62), drawn once and stored
beside this file. `stride` keeps every stride-th of the sorted lengths: the same distribution, less work; `repeat` takes
each that often, with other tokens: more work, for a GPU.
"""
import json
import random


def lengths(path, stride=1, repeat=1):
    values = json.load(open(path))["lengths"]
    if stride > 1:
        values = sorted(values)[stride // 2 :: stride]
        random.Random(7).shuffle(values)
    return values * repeat


def roberta_ids(values, vocab=50265, seed=1):
    r = random.Random(seed)
    return [[0] + [r.randrange(4, vocab - 2) for _ in range(n - 2)] + [2] for n in values]


def t5_ids(values, vocab=32100, seed=2):
    r = random.Random(seed)
    return [[r.randrange(3, vocab) for _ in range(n - 1)] + [1] for n in values]


def batches(rows, budget):
    """Length-sorted batches whose padded size is at most `budget` tokens: what a careful user of the peer does."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    out, current = [], []
    for i in order:
        longest = len(rows[current[0]]) if current else len(rows[i])
        if current and (len(current) + 1) * longest > budget:
            out.append(current)
            current = []
        current.append(i)
    return out + [current]


def padded(rows, chosen, pad_id, to=None):
    import numpy as np

    width = to or max(len(rows[i]) for i in chosen)
    ids = np.full((len(chosen), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(chosen), width), dtype=np.int64)
    for r, i in enumerate(chosen):
        ids[r, : len(rows[i])] = rows[i]
        mask[r, : len(rows[i])] = 1
    return ids, mask


if __name__ == "__main__":
    # python workload.py roberta|t5 LENGTHS STRIDE REPEAT ROWS.json: the rows for the side that is not Python.
    import sys

    kind, path, stride, repeat, output = sys.argv[1:]
    ids = {"roberta": roberta_ids, "t5": t5_ids}[kind]
    json.dump(ids(lengths(path, int(stride), int(repeat))), open(output, "w"))
