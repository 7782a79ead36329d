"""One timed pass of transformers + PyTorch f32 over the pairs; prints one JSON line.

--padding sorted: length-sorted batches of at most --tokens padded tokens (a careful user).
--padding seed:   every pair padded to 512, 16 a batch (the reference scripts).
"""
import argparse
import json
import time

import workload

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--lengths", required=True)
parser.add_argument("--stride", type=int, default=1)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--tokens", type=int, default=1024)
parser.add_argument("--padding", choices=["sorted", "seed"], default="sorted")
a = parser.parse_args()

import torch
from transformers import AutoModelForSequenceClassification

torch.set_num_threads(a.threads)
model = AutoModelForSequenceClassification.from_pretrained(a.model).eval()
rows = workload.roberta_ids(workload.lengths(a.lengths, a.stride))
if a.padding == "sorted":
    batches, to = workload.batches(rows, a.tokens), None
else:
    batches, to = [list(range(i, min(i + 16, len(rows)))) for i in range(0, len(rows), 16)], 512


def run(batches):
    scores = [0.0] * len(rows)
    with torch.inference_mode():
        for chosen in batches:
            ids, mask = workload.padded(rows, chosen, 1, to)
            logits = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
            for i, score in zip(chosen, logits[:, 0].tolist()):
                scores[i] = score
    return scores


run([batches[-1][:2]])
start = time.perf_counter()
scores = run(batches)
seconds = time.perf_counter() - start
tokens = sum(map(len, rows))
print(json.dumps({"seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds, "scores": scores}))
