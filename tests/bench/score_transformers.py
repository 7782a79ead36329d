"""One timed pass of transformers + PyTorch over the pairs; prints one JSON line.

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
parser.add_argument("--repeat", type=int, default=1)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--device", default="cpu")
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
parser.add_argument("--batch", help="of the other workload")
parser.add_argument("--tokens", type=int, help="of a batch [default: 1024 on the CPU, 32768 on a GPU]")
parser.add_argument("--padding", choices=["sorted", "seed"], default="sorted")
a = parser.parse_args()

import torch
from transformers import AutoModelForSequenceClassification

torch.set_num_threads(a.threads)
kind = {"f32": torch.float32, "bf16": torch.bfloat16}[a.dtype]
model = AutoModelForSequenceClassification.from_pretrained(a.model, torch_dtype=kind).to(a.device).eval()
tokens = a.tokens or (1024 if a.device == "cpu" else 32768)
rows = workload.roberta_ids(workload.lengths(a.lengths, a.stride, a.repeat))
if a.padding == "sorted":
    batches, to = workload.batches(rows, tokens), None
else:
    batches, to = [list(range(i, min(i + 16, len(rows)))) for i in range(0, len(rows), 16)], 512


def run(batches):
    scores = [0.0] * len(rows)
    with torch.inference_mode():
        for chosen in batches:
            ids, mask = workload.padded(rows, chosen, 1, to)
            ids, mask = torch.from_numpy(ids).to(a.device), torch.from_numpy(mask).to(a.device)
            logits = model(input_ids=ids, attention_mask=mask).logits
            for i, score in zip(chosen, logits[:, 0].tolist()):
                scores[i] = score
    return scores


# A GPU's libraries choose their kernels by size.
run([batches[-1][:2]] if a.device == "cpu" else batches)
start = time.perf_counter()
scores = run(batches)
seconds = time.perf_counter() - start
tokens = sum(map(len, rows))
print(json.dumps({"seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds, "scores": scores}))
