"""Compares `cappy-client` with transformers and PyTorch; see README.md."""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import models
import reference
import rows

TRAINING = dict(batch=4, accumulate=4, updates=20, peak=1e-4, warmup=0.1)


class Client:
    """Runs the client on an embedded cluster with a data folder of its own."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder

    def run(self, *arguments, rows=None):
        command = [self.program, "--local", "--quiet", "--data-dir", str(self.folder / "data"), *map(str, arguments)]
        text = None if rows is None else "".join(json.dumps(row) + "\n" for row in rows)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
        return done.stdout

    def rows(self, *arguments, rows):
        answers = self.run("--output", "ndjson", *arguments, "--input", "-", rows=rows)
        return [json.loads(line) for line in answers.splitlines()]


def worst(ours, theirs, relative=False):
    scale = (lambda x: max(abs(x), 1e-9)) if relative else (lambda x: 1.0)
    return max(abs(a - b) / scale(b) for a, b in zip(ours, theirs, strict=True))


def check_scorer(client, folder, scratch):
    scorer, pairs = reference.Scorer(folder), rows.pairs()
    answers = client.rows("score", "--scorer", folder, rows=[{"instruction": i, "response": r} for i, r in pairs])
    yield "scores", worst([row["score"] for row in answers], scorer.scores(pairs)), 1e-4
    labelled = rows.labelled()
    path = scratch / "labelled.jsonl"
    keys = ("instruction", "response", "label")
    path.write_text("".join(json.dumps(dict(zip(keys, row))) + "\n" for row in labelled))
    result = json.loads(client.run(
        "--output", "json", "submit", "adapt", "--scorer", folder, "--train", path, "--updates", TRAINING["updates"],
        "--batch-size", TRAINING["batch"], "--accumulate", TRAINING["accumulate"], "--learning-rate", TRAINING["peak"],
        "--warmup", TRAINING["warmup"], "--schedule", "corrected", "--dropout", 0, "--order", "given",
        "--results", scratch / "results",
    ))
    yield "losses of 20 updates", worst(result["losses"], scorer.losses(labelled, **TRAINING)), 1e-3


def check_generator(client, folder):
    generator, sources = reference.Generator(folder), rows.sources()
    answers = client.rows("generate", "--model", folder, "--decoding", "beam4", rows=[{"instruction": s} for s in sources])
    ours = [row["flan_samples"]["beam4"][0]["response"] for row in answers]
    theirs = generator.beams(sources)
    yield "beam search, rows that differ", sum(a != b for a, b in zip(ours, theirs, strict=True)), 0
    pairs = list(zip(sources, theirs[1:] + theirs[:1]))
    answers = client.rows("log-likelihood", "--model", folder, rows=[{"instruction": i, "response": r} for i, r in pairs])
    expected = generator.log_likelihoods(pairs)
    for at, name in enumerate(("sum", "mean")):
        ours = [row[f"log_likelihood_{name}"] for row in answers]
        yield f"log-likelihood {name}, relative", worst(ours, [pair[at] for pair in expected], relative=True), 1e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", required=True, help="the cappy-client program")
    parser.add_argument("--scorer", type=pathlib.Path, help="a scorer's folder [default: a small random one]")
    parser.add_argument("--generator", type=pathlib.Path, help="a generator's folder [default: a small random one]")
    arguments = parser.parse_args()
    exceeded = False
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        scorer, generator = arguments.scorer, arguments.generator
        if scorer is None:
            models.make_scorer(scorer := scratch / "scorer")
        if generator is None:
            models.make_generator(generator := scratch / "generator")
        client = Client(arguments.client, scratch)
        for checks in (check_generator(client, generator), check_scorer(client, scorer, scratch)):
            for name, difference, allowed in checks:
                exceeded |= not difference <= allowed
                print(f"{name:32} worst {difference:.3g}, allowed {allowed:g}{'' if difference <= allowed else '  EXCEEDED'}")
    sys.exit(int(exceeded))


if __name__ == "__main__":
    main()
