"""A small scoring server: transformers + PyTorch f32 behind a batching queue, as one would write it around a CrossEncoder.

POST /score {"instruction", "responses"} -> {"scores"}. Requests that wait together run together, sorted by length, in
batches of at most --tokens padded tokens; when more than --queue wait, 429. Prints its address when it is ready.
"""
import argparse
import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--tokens", type=int, default=1024)
parser.add_argument("--queue", type=int, default=128)
a = parser.parse_args()

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

torch.set_num_threads(a.threads)
model = AutoModelForSequenceClassification.from_pretrained(a.model, attn_implementation="sdpa").eval()
tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{a.model}/tokenizer.json", pad_token="<pad>")
waiting = queue.Queue(maxsize=a.queue)


class Call:
    def __init__(self, pairs):
        self.pairs, self.scores, self.done = pairs, [0.0] * len(pairs), threading.Event()


def batches(rows):
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    out, current = [], []
    for i in order:
        longest = len(rows[current[0]]) if current else len(rows[i])
        if current and (len(current) + 1) * longest > a.tokens:
            out.append(current)
            current = []
        current.append(i)
    return out + [current]


def compute():
    while True:
        calls = [waiting.get()]
        while len(calls) < 64:
            try:
                calls.append(waiting.get_nowait())
            except queue.Empty:
                break
        places = [(call, i) for call in calls for i in range(len(call.pairs))]
        ids = [tokenizer(*call.pairs[i], truncation="longest_first", max_length=512).input_ids for call, i in places]
        with torch.inference_mode():
            for chosen in batches(ids):
                width = max(len(ids[i]) for i in chosen)
                rows = torch.full((len(chosen), width), 1)
                mask = torch.zeros((len(chosen), width), dtype=torch.long)
                for r, i in enumerate(chosen):
                    rows[r, : len(ids[i])] = torch.tensor(ids[i])
                    mask[r, : len(ids[i])] = 1
                logits = model(input_ids=rows, attention_mask=mask).logits[:, 0].tolist()
                for i, score in zip(chosen, logits):
                    call, place = places[i]
                    call.scores[place] = score
        for call in calls:
            call.done.set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        call = Call([(request["instruction"], response) for response in request["responses"]])
        try:
            waiting.put_nowait(call)
        except queue.Full:
            return self.answer(429, {"error": "full"})
        call.done.wait()
        self.answer(200, {"scores": call.scores})

    def answer(self, status, body):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    request_queue_size = 2048
    daemon_threads = True


server = Server(("127.0.0.1", 0), Handler)
threading.Thread(target=compute, daemon=True).start()
print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
