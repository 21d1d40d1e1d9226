"""Measures demo models with the reference implementation (transformers), not with the code that trained them.

    python configs/models/demo/evaluate.py configs/models/demo-mha configs/models/demo-gqa configs/models/demo-mqa

Held-out facts and stories alone: perplexity of stories, recall of needles by prompt length (all depths), recall of pairs by
their number, and chat answers that are right to the letter. The cases are those of tests/e2e/needle.py.
"""

import argparse
import os
import random
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import data

DEPTHS = [0, 0.25, 0.5, 0.75, 1]


class Subject:
    def __init__(self, path: str):
        self.name = os.path.basename(path.rstrip("/"))
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    def ids(self, text: str) -> torch.Tensor:
        return self.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids

    def next_word(self, prompt: str) -> str:
        logits = self.model(self.ids(prompt), logits_to_keep=1).logits[0, -1]
        return self.tokenizer.decode([logits.argmax().item()]).strip()

    def recall(self, cases: list[tuple[str, str]]) -> float:
        return sum(self.next_word(prompt) == word for prompt, word in cases) / len(cases)

    def perplexity(self, stories: int) -> float:
        total = count = 0
        for i in range(stories):
            rng = random.Random(f"held out/{i}")
            ids = self.ids(data.Story(rng).whole(rng.randint(6, 14)) + data.END_OF_TEXT)
            total += self.model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        return torch.tensor(total / count).exp().item()

    def chat(self, cases: int, length: int) -> float:
        """Whole answers generated greedily: "The password for Anna is walnut." and the end of the turn."""
        right = 0
        for i in range(cases):
            prompt, word = data.needle_case(f"chat/{i}", length, (i % 5) / 4)
            text, asked = prompt.rsplit(". ", 1)
            style = next(s for s, fact in enumerate(data.FACTS) if asked.startswith(fact.split(" {name}")[0]))
            name = asked.split()[-2]
            question = {"role": "user", "content": f"{text}. {data.QUESTIONS[style].format(name=name)}"}
            shown = self.tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
            ids = self.ids(shown)
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16)[0, ids.shape[1] :]
            right += self.tokenizer.decode(out) == data.FACTS[style].format(name=name, word=word) + data.IM_END
        return right / cases


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--lengths", default="64,128,256,512,1024,2048,4096")
    parser.add_argument("--pairs", default="4,8,16,32,64,96")
    parser.add_argument("--cases", type=int, default=10, help="per depth and length; four times as many per number of pairs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lengths, counts = ([int(x) for x in text.split(",")] for text in (args.lengths, args.pairs))
    head = ["model", "story perplexity", *(f"needle {n}" for n in lengths), *(f"{n} pairs" for n in counts), "chat 256"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for path in args.models:
        subject = Subject(path)
        cells = [subject.name, f"{subject.perplexity(50):.3f}"]
        for n in lengths:
            grid = [data.needle_case(f"evaluate/{i}", n, depth) for depth in DEPTHS for i in range(args.cases)]
            cells.append(f"{100 * subject.recall(grid):.0f} %")
        for n in counts:
            cells.append(f"{100 * subject.recall([data.pairs_case(f'evaluate/{i}', n) for i in range(4 * args.cases)]):.0f} %")
        cells.append(f"{100 * subject.chat(4 * args.cases, 256):.0f} %")
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
