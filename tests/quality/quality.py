#!/usr/bin/env python3
"""Prints what each type of weights and KV pages costs in quality, against bf16 for both, as a table.

    tests/quality/quality.py                                       the demo models: perplexity, recall, difference of logits
    tests/quality/quality.py --shape configs/models/smollm2-135m.json      random weights: difference of logits

Stories and facts are those that training never showed (configs/models/demo/data.py). Recall: the right word is the likeliest token
after a fact asked for in a story, or one pair asked for of a list. KL: of the reference's distribution to the type's, in nats per token.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "configs/models/demo"))
import data  # the texts that the demo models know


def make_cases(stories: int, recalls: int) -> dict:
    texts = []
    for i in range(stories):
        rng = random.Random(f"quality/{i}")
        texts.append(data.Story(rng).whole(rng.randint(6, 14)))
    asked = [data.needle_case(f"quality/{i}", 512, (i % 5) / 4) for i in range(recalls)]
    asked += [data.pairs_case(f"quality/{i}", 32) for i in range(recalls)]
    return {"stories": texts, "recalls": asked}


def measure(binary: str, *arguments: str) -> list[dict]:
    return json.loads(subprocess.run([binary, *arguments], check=True, stdout=subprocess.PIPE).stdout)


def print_table(name: str, rows: list[dict]) -> None:
    for row in rows:
        recall = "" if row["recall"] is None else f"{100 * row['recall']:.1f} %"
        print(f"| {name} | {row['weights']} | {row['kv']} | {row['weight_bytes'] / 1024:.0f} | {row['kv_token_bytes']} | {row['perplexity']:.4f} | "
              f"{recall} | {100 * row['top1']:.2f} % | {row['kl']:.1e} | {row['kl_max']:.1e} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=[os.path.join(ROOT, f"configs/models/demo-{name}") for name in ("mha", "gqa", "mqa")])
    parser.add_argument("--shape", action="append", default=[], help="config.json: random weights instead")
    parser.add_argument("--binary", default=os.path.join(ROOT, "build/cpu-release/tests/quality"))
    parser.add_argument("--stories", type=int, default=40)
    parser.add_argument("--recalls", type=int, default=50, help="of each kind")
    args = parser.parse_args()
    print("| model | weights | KV | weights, KiB | KV bytes per token | perplexity | recall | top-1 as bf16 | KL, mean | KL, largest |")
    print("|" + "---|" * 10)
    try:
        for shape in args.shape:
            print_table(os.path.splitext(os.path.basename(shape))[0], measure(args.binary, "--shape", shape))
        if not args.shape:
            with tempfile.NamedTemporaryFile("w", suffix=".json") as cases:
                json.dump(make_cases(args.stories, args.recalls), cases)
                cases.flush()
                for model in args.models:
                    print_table(os.path.basename(model.rstrip("/")), measure(args.binary, model, cases.name))
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
