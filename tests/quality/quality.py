#!/usr/bin/env python3
"""Prints what each type of weights, KV pages and activations costs in quality, against bf16 for weights and KV, as a table.

    tests/quality/quality.py                                       the demo models: perplexity, recall, difference of logits
    tests/quality/quality.py --shape configs/models/smollm2-135m.json      random weights: difference of logits
    tests/quality/quality.py --check                               a small shape and demo-gqa, held to bounds from the types' errors

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


# The error of an element by its type, relative to the size of its row: root mean square. Floats have half a unit of their last bit at most,
# evenly spread over mantissas of 1.5 on average. Groups of random uniform weights, whose largest is sqrt 3 times their size, have steps of
# 1/127 and 1/7 of it, and a step's error is its 1/sqrt 12. A head's K and V are like normal numbers: of 32, the largest is 2.4 times their size.
STEP = 12 ** -0.5
ERRORS = {"fp32": 0.0, "bf16": 2**-8 / 3**0.5 / 1.5, "fp16": 2**-11 / 3**0.5 / 1.5, "int8": 3**0.5 / 127 * STEP, "int4": 3**0.5 / 7 * STEP}
KV_ERRORS = {**ERRORS, "int8": 2.4 / 127 * STEP}
# Logits that differ by e of their size give KL = e² · variance / 2: a unit. Four random layers add up to some dozens of them; a type that
# is one step coarser than it says is another 25 times off.
UNITS, KV_UNITS = (3, 100), (2, 30)
CHECKED_SHAPE = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
                 "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 512,
                 "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "bfloat16"}


def check(row: dict) -> str:
    """What is wrong with a row of the random shape, or ""."""
    if (row["weights"], row["kv"], row["activations"]) == ("bf16", "bf16", "fp32"):
        return "" if row["kl"] == 0 and row["top1"] == 1 else "the reference differs from itself"
    squares = 0.0  # both sides have an error where their types differ
    if row["weights"] != "bf16":
        squares += ERRORS[row["weights"]] ** 2 + ERRORS["bf16"] ** 2
    if row["kv"] != "bf16":
        squares += KV_ERRORS[row["kv"]] ** 2 + KV_ERRORS["bf16"] ** 2
    if row["activations"] == "bf16":
        squares += ERRORS["bf16"] ** 2
    units = row["kl"] / (squares * row["noise_gain"] / 2)
    least, most = KV_UNITS if row["weights"] == "bf16" and row["activations"] == "fp32" else UNITS
    return "" if least <= units <= most else f"KL {row['kl']:.2e} is {units:.1f} times the type's error, not {least} to {most}"


def checked(binary: str) -> int:
    failed = passed = 0
    with tempfile.TemporaryDirectory() as folder:
        shape = os.path.join(folder, "shape.json")
        cases = os.path.join(folder, "cases.json")
        with open(shape, "w") as file:
            json.dump(CHECKED_SHAPE, file)
        with open(cases, "w") as file:
            json.dump(make_cases(2, 3), file)
        random_rows = measure(binary, "--shape", shape)
        trained_rows = measure(binary, os.path.join(ROOT, "configs/models/demo-gqa"), cases)
    reference = trained_rows[0]
    findings = [(row, check(row)) for row in random_rows]
    for row in trained_rows:  # trained: every fact is found, by any type; perplexity moves by less than the KL allows (Pinsker)
        worse = row["perplexity"] / reference["perplexity"] - 1
        bound = (2 * row["kl"]) ** 0.5 + row["kl"]
        wrong = "" if row["recall"] == 1 else f"recall {row['recall']}"
        findings.append((row, wrong or ("" if abs(worse) <= bound else f"perplexity {worse:+.2%}, KL allows {bound:.2%}")))
    for row, wrong in findings:
        passed, failed = passed + (not wrong), failed + bool(wrong)
        if wrong:
            print(f"FAILED {row['weights']} weights, {row['kv']} KV, {row['activations']} activations: {wrong}")
    if not any(row["activations"] == "bf16" for row in random_rows):
        print("SKIPPED: activations of bf16: this CPU does not multiply them")
    print(f"CHECKS {passed} passed, {failed} failed   (types of weights, KV and activations)")
    return 1 if failed else 0


def print_table(name: str, rows: list[dict]) -> None:
    for row in rows:
        recall = "" if row["recall"] is None else f"{100 * row['recall']:.1f} %"
        print(f"| {name} | {row['weights']} | {row['kv']} | {row['activations']} | {row['weight_bytes'] / 1024:.0f} | {row['kv_token_bytes']} | {row['perplexity']:.4f} | "
              f"{recall} | {100 * row['top1']:.2f} % | {row['kl']:.1e} | {row['kl_max']:.1e} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=[os.path.join(ROOT, f"configs/models/demo-{name}") for name in ("mha", "gqa", "mqa")])
    parser.add_argument("--shape", action="append", default=[], help="config.json: random weights instead")
    parser.add_argument("--binary", default=os.path.join(ROOT, "build/cpu-release/tests/quality"))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--stories", type=int, default=40)
    parser.add_argument("--recalls", type=int, default=50, help="of each kind")
    args = parser.parse_args()
    if args.check:
        return checked(args.binary)
    print("| model | weights | KV | activations | weights, KiB | KV bytes per token | perplexity | recall | top-1 as bf16 | KL, mean | KL, largest |")
    print("|" + "---|" * 11)
    try:
        for shape in args.shape:
            path, name = os.path.split(os.path.abspath(shape))
            print_table(os.path.basename(path) if name == "config.json" else os.path.splitext(name)[0], measure(args.binary, "--shape", shape))
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
