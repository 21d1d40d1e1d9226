"""Trains one demo model from nothing on a CPU: python configs/models/demo/train.py --kv-heads 2 --out configs/models/demo-gqa

The length of the sequences doubles whenever recall passes the bar; the learning rate falls to nothing over the last part of
the budget. The same --seed and --steps give the same data in the same order. A run goes on from its state file, if there.
"""

import argparse
import json
import math
import os
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import data
import model as demo

MIXTURE = {"story": 0.12, "needle": 0.3, "pairs": 0.28, "copy": 0.1, "chat": 0.2}
LENGTHS = [64, 128, 256, 512, 1024, 2048]
RECALL_BAR = 0.95  # share of looked-up tokens that must be right before sequences get longer


def orthogonalize(g: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz towards the nearest half-orthogonal matrix (the Muon optimiser, Jordan et al. 2024)."""
    tall = g.shape[0] > g.shape[1]
    x = g.T if tall else g
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


class Optimizer:
    """Muon for the hidden matrices, Adam for embedding and norms; one learning rate for both."""

    def __init__(self, model: demo.Model):
        self.hidden = [(p, cuts, torch.zeros_like(p)) for p, cuts in model.matrices()]
        taken = {id(p) for p, _, _ in self.hidden}
        self.rest = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters() if id(p) not in taken]
        self.steps = 0

    def state(self):
        return {"steps": self.steps, "hidden": [m for _, _, m in self.hidden], "rest": [(m, v) for _, m, v in self.rest]}

    def load(self, state) -> None:
        self.steps = state["steps"]
        for (_, _, mine), saved in zip(self.hidden, state["hidden"]):
            mine.copy_(saved)
        for (_, m, v), (saved_m, saved_v) in zip(self.rest, state["rest"]):
            m.copy_(saved_m), v.copy_(saved_v)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        self.steps += 1
        for p, cuts, momentum in self.hidden:
            momentum.lerp_(p.grad, 0.05)
            update = p.grad.lerp(momentum, 0.95)
            p.mul_(1 - rate * 0.02)
            for part, change in zip(p.split(cuts), update.split(cuts)):
                part.add_(orthogonalize(change), alpha=-rate * 0.2 * math.sqrt(max(change.shape)))
            p.grad = None
        for p, m, v in self.rest:
            m.lerp_(p.grad, 0.1)
            v.lerp_(p.grad.square(), 0.03)
            m_hat, v_hat = m / (1 - 0.9**self.steps), v / (1 - 0.97**self.steps)
            p.sub_(rate * m_hat / (v_hat.sqrt() + 1e-8))
            p.grad = None


def tensors(encoder, seed, length, count, mixture, test=False):
    ids, weights = data.batch(encoder, seed, length, count, mixture, test)
    return torch.tensor(ids), torch.tensor(weights)[:, 1:].reshape(-1)


def losses(model, ids, weights):
    """Weighted mean loss over the positions that carry one, and how many of the looked-up tokens were right."""
    rows = weights.nonzero().squeeze(1)
    logits = model(ids[:, :-1], rows)
    target, weight = ids[:, 1:].reshape(-1)[rows], weights[rows]
    loss = F.cross_entropy(logits, target, reduction="none")
    asked = weight == data.ANSWER
    right = (logits.detach().argmax(-1) == target)[asked]
    return (loss * weight).sum() / weight.sum(), loss.detach(), right.sum().item(), right.numel()


@torch.no_grad()
def evaluate(model, encoder, length: int) -> dict[str, float]:
    """Held-out facts alone: share of answers that are right, by kind of document; perplexity of unseen stories."""
    out = {}
    for kind in ("needle", "pairs", "chat"):
        ids, weights = tensors(encoder, f"test/{kind}/{length}", length, max(2, 4096 // length), {kind: 1.0}, test=True)
        _, _, right, total = losses(model, ids, weights)
        out[kind] = right / max(1, total)
    ids, weights = tensors(encoder, f"test/story/{length}", length, max(2, 4096 // length), {"story": 1.0}, test=True)
    out["ppl"] = losses(model, ids, weights)[1].mean().exp().item()
    return out


def show_progress(line: str, share: float) -> None:
    """A line per report in a log; on a terminal a bar that stays in its place."""
    if sys.stderr.isatty():
        done = int(30 * share)
        print(f"\r[{'#' * done}{'.' * (30 - done)}] {line}\033[K", end="", file=sys.stderr, flush=True)
    else:
        print(line, flush=True)


def rate_at(peak: float, step: int, share: float, decay: float) -> float:
    """Warm-up over 60 steps, level, then straight to zero over the last `decay` of the budget."""
    return peak * min(1.0, (step + 1) / 60) * min(1.0, max(0.0, (1 - share) / decay))


def options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kv-heads", type=int, required=True, choices=(8, 4, 2, 1))
    parser.add_argument("--out", required=True, help="directory to write, Hugging Face layout")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time, if sooner (the learning rate falls in time)")
    parser.add_argument("--steps", type=int, default=1100, help="stop after this many steps of this run")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate")
    parser.add_argument("--decay", type=float, default=0.3, help="share of the budget over which the rate falls")
    parser.add_argument("--length-max", type=int, default=1024, help="longest sequences")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--state", help="state file to go on from and to write (default: OUT.state.pt, not part of the model)")
    return parser.parse_args()


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    here = os.path.dirname(os.path.abspath(__file__))
    tokenizer_path = os.path.join(here, "tokenizer.json")
    if not os.path.exists(tokenizer_path):
        data.train_tokenizer(tokenizer_path)
    encoder = data.Encoder(tokenizer_path)
    model = demo.Model(args.kv_heads, encoder.tokenizer.get_vocab_size())
    optimizer = Optimizer(model)
    first, stage = 0, 0
    state_path = args.state or args.out.rstrip("/") + ".state.pt"
    if os.path.exists(state_path):
        state = torch.load(state_path)
        model.load_state_dict(state["model"])
        optimizer.load(state["optimizer"])
        first, stage = state["step"], state["stage"]
        print(f"going on from {state_path}: step {first}, length {LENGTHS[stage]}", flush=True)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {args.kv_heads} KV heads, vocabulary {model.embedding.shape[0]}", flush=True)

    start = report_at = time.monotonic()
    right = asked = seen = 0
    loss_sum = loss_count = 0.0
    last = first + args.steps
    for step in range(first, last):
        share = max((step - first) / args.steps, (time.monotonic() - start) / 60 / args.minutes)
        if share >= 1:
            break
        shorter = (0, 1, 0, 2)[step % 4]  # half of the steps rehearse shorter sequences, which cost less
        length = LENGTHS[max(0, stage - shorter)]
        ids, weights = tensors(encoder, f"{args.seed}/{step}", length, max(1, args.tokens // length), MIXTURE)
        loss, _, hits, total = losses(model, ids, weights)
        loss.backward()
        optimizer.step(rate_at(args.rate, step - first, share, args.decay))
        loss_sum, loss_count, seen = loss_sum + loss.item(), loss_count + 1, seen + ids.numel()
        if shorter == 0:
            right, asked = right + hits, asked + total
        if (step + 1) % 25 == 0:
            now, recall = time.monotonic(), right / max(1, asked)
            eta = (now - start) * (1 - share) / max(share, 1e-9)
            show_progress(f"step {step + 1} length {LENGTHS[stage]} loss {loss_sum / loss_count:.3f} recall {recall:.3f} "
                          f"{seen / (now - report_at):.0f} tokens/s eta {eta / 60:.1f} min", share)
            if recall > RECALL_BAR and LENGTHS[stage] < args.length_max:
                stage += 1
            right = asked = seen = 0
            loss_sum, loss_count, report_at = 0.0, 0.0, now
        if (step + 1) % 500 == 0:
            save(model, optimizer, step + 1, stage, state_path)
    save(model, optimizer, step + 1, stage, state_path)
    demo.export(model, args.out, tokenizer_path)
    for length in (128, 256, 512, 1024, 2048):
        print(json.dumps({"length": length, **{k: round(v, 4) for k, v in evaluate(model, encoder, length).items()}}), flush=True)


def save(model, optimizer, step: int, stage: int, path: str) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state(), "step": step, "stage": stage}
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)


if __name__ == "__main__":
    main()
