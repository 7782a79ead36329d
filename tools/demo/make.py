"""Makes every demo asset: `python tools/demo/make.py --output demo/assets`.

Writes `benchmark/`, `generator/` and `scorer/` below the output folder. One CPU core, no network, under an hour
with the default numbers of steps; the same library versions on the same kind of machine give the same files.
"""

import argparse
import shutil
from pathlib import Path

import torch

import benchmark
import train_generator
import train_scorer

CARDS = Path(__file__).parent / "cards"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the assets to")
    parser.add_argument("--only", choices=["benchmark", "generator", "scorer"], nargs="*", help="make only these")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the training, to try the scripts")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; another number rounds differently")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator_legs, scorer_legs = train_generator.LEGS, train_scorer.LEGS
    if arguments.quick:
        generator_legs = tuple((steps // 100, *rest) for steps, *rest in generator_legs)
        scorer_legs = tuple((steps // 100, peak) for steps, peak in scorer_legs)
    makers = {
        "benchmark": benchmark.write,
        "generator": lambda folder: train_generator.train(folder, generator_legs),
        "scorer": lambda folder: train_scorer.train(folder, scorer_legs),
    }
    for name in arguments.only or makers:
        folder = arguments.output / name
        folder.mkdir(parents=True, exist_ok=True)
        makers[name](folder)
        shutil.copy(CARDS / f"{name}.md", folder / "README.md")


if __name__ == "__main__":
    main()
