"""One timed pass of transformers + PyTorch over the prompts; prints one JSON line.

The seed's work for a row: beam search, four sampling decodings of four outputs each, and the log-likelihood of the
17 candidates; 32 new tokens each (random weights rarely end by themselves), --batch prompts together, sorted by length.
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
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--new-tokens", type=int, default=32)
a = parser.parse_args()

import torch
from transformers import T5ForConditionalGeneration

torch.set_num_threads(a.threads)
torch.manual_seed(0)
kind = {"f32": torch.float32, "bf16": torch.bfloat16}[a.dtype]
model = T5ForConditionalGeneration.from_pretrained(a.model, torch_dtype=kind).to(a.device).eval()
rows = workload.t5_ids(workload.lengths(a.lengths, a.stride, a.repeat))
order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
batches = [order[i : i + a.batch] for i in range(0, len(order), a.batch)]
fixed = dict(min_new_tokens=a.new_tokens, max_new_tokens=a.new_tokens)
sampling = [dict(top_k=50), dict(top_k=50, temperature=0.9), dict(top_k=40), dict(top_k=50, top_p=0.95)]


def run(batches):
    out_tokens = 0
    with torch.inference_mode():
        for chosen in batches:
            ids, mask = (torch.from_numpy(x).to(a.device) for x in workload.padded(rows, chosen, 0))
            outputs = [model.generate(input_ids=ids, attention_mask=mask, num_beams=4, do_sample=False, **fixed)]
            for kwargs in sampling:
                outputs.append(
                    model.generate(
                        input_ids=ids, attention_mask=mask, do_sample=True, num_return_sequences=4, **kwargs, **fixed
                    )
                )
            # The peer at its best: the source is encoded once for all likelihoods.
            encoded = model.get_encoder()(input_ids=ids, attention_mask=mask)
            for output in outputs:
                labels = output[:, 1:]
                repeat = labels.shape[0] // ids.shape[0]
                for k in range(repeat):
                    part = labels[k::repeat].contiguous()
                    logits = model(encoder_outputs=encoded, attention_mask=mask, labels=part).logits.float()
                    torch.log_softmax(logits, -1).gather(-1, part[..., None]).squeeze(-1).sum(-1).tolist()
                out_tokens += labels.numel()
    return out_tokens


run([batches[-1][:2]] if a.device == "cpu" else batches[:1])
start = time.perf_counter()
out_tokens = run(batches)
seconds = time.perf_counter() - start
print(
    json.dumps(
        {"seconds": seconds, "rows": len(rows), "candidates": 17 * len(rows), "out_tokens": out_tokens,
         "out_tokens_per_s": out_tokens / seconds}
    )
)
