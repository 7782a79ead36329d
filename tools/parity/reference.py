"""What transformers and PyTorch make of the rows: f32, one row at a time, nothing padded."""

import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

torch.set_num_threads(1)


class Scorer:
    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def encode(self, instruction, response):
        # In lists: the library takes a lone empty response for no response at all.
        limits = {"truncation": "longest_first", "max_length": 512}
        return self.tokenizer([instruction], [response], return_tensors="pt", **limits)

    def scores(self, pairs):
        with torch.inference_mode():
            return [self.model(**self.encode(*pair)).logits[0, 0].item() for pair in pairs]

    def losses(self, rows, batch, accumulate, updates, peak, warmup):
        """Mean loss of each update; AdamW, linear warm-up and decay, dropout off, rows in order, repeated at the end."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=peak, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        out = []
        for update in range(updates):
            total = 0.0
            for micro in range(update * accumulate, (update + 1) * accumulate):
                chosen = [rows[i % len(rows)] for i in range(micro * batch, (micro + 1) * batch)]
                loss = sum(
                    (self.model(**self.encode(i, r)).logits[0, 0] - label) ** 2 for i, r, label in chosen
                ) / batch
                (loss / accumulate).backward()
                total += loss.item()
            rise = warmup * updates
            share = update / rise if update < rise else 1.0 - (update - rise) / (updates - rise)
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()
            out.append(total / accumulate)
        return out


class Generator:
    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()

    def source(self, text):
        return torch.tensor([self.tokenizer(text, truncation=True, max_length=512).input_ids])

    def beams(self, sources):
        with torch.inference_mode():
            return [
                self.tokenizer.decode(
                    self.model.generate(self.source(s), num_beams=4, do_sample=False, min_length=3, max_length=64)[0],
                    skip_special_tokens=True,
                )
                for s in sources
            ]

    def log_likelihoods(self, pairs):
        """(sum, mean) of each response under its instruction."""
        out = []
        with torch.inference_mode():
            for source, target in pairs:
                labels = torch.tensor([self.tokenizer(target, truncation=True, max_length=64).input_ids])
                logits = self.model(input_ids=self.source(source), labels=labels).logits
                picked = torch.log_softmax(logits.double(), -1).gather(-1, labels[..., None])
                out.append((picked.sum().item(), picked.mean().item()))
        return out
