#!/usr/bin/env python3
"""Asks running servers for facts hidden in their context, and prints how many come back and the KV bytes that took.

    tests/e2e/needle.py mha=http://127.0.0.1:8001 gqa=http://127.0.0.1:8002 mqa=http://127.0.0.1:8003

Two tests, both greedy, one token per answer, on (name, word) pairs that training never showed:
  needle  four facts in a story, one is asked for: a grid of prompt length by depth of the fact;
  pairs   a list of "name = word" pairs, one name is asked for: recall by the number of pairs.
Python's standard library alone. Exit code 1 if a server fails, or if recall falls below --require in any row up to
--require-length.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import sys
import urllib.error
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../configs/models/demo"))
import data  # the texts that the demo models know

Answer = collections.namedtuple("Answer", "right prompt_tokens kv_bytes kv_pages mha_bytes")


def call(url: str, body: dict | None, key: str | None) -> dict:
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {error.code} {error.read().decode(errors='replace')[:300]}") from None
    except (urllib.error.URLError, OSError) as error:
        raise RuntimeError(f"{url}: {error}; is the server running there?") from None


class Server:
    def __init__(self, name: str, url: str, key: str | None):
        self.name, self.url, self.key = name, url.rstrip("/"), key
        self.model = call(f"{self.url}/v1/models", None, key)["data"][0]["id"]

    def ask(self, prompt: str, word: str) -> Answer:
        reply = call(f"{self.url}/v1/completions",
                     {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0}, self.key)
        usage = reply["usage"]
        kv = usage.get("kv_cache") or {}
        return Answer(reply["choices"][0]["text"].strip() == word, usage["prompt_tokens"], kv.get("bytes", 0),
                      kv.get("pages", 0), kv.get("mha_equivalent_bytes", 0))


Row = collections.namedtuple("Row", "test server size recalls tokens kv_bytes kv_pages mha_bytes")


def summarize(test: str, server: Server, size: int, columns: list[list[Answer]]) -> Row:
    """One row of a table: recall per column, and the largest figures of its requests."""
    everyone = [answer for column in columns for answer in column]
    recalls = [sum(a.right for a in column) / len(column) for column in columns]
    most = {field: max(getattr(a, field) for a in everyone) for field in Answer._fields[1:]}
    return Row(test, server.name, size, recalls, most["prompt_tokens"], most["kv_bytes"], most["kv_pages"], most["mha_bytes"])


def run_row(pool, server: Server, test: str, size: int, columns: list[list[tuple[str, str]]]) -> Row:
    futures = [[pool.submit(server.ask, *case) for case in column] for column in columns]
    return summarize(test, server, size, [[future.result() for future in column] for column in futures])


def progress(done: int, total: int, what: str) -> None:
    if sys.stderr.isatty():
        filled = 30 * done // total
        print(f"\r[{'#' * filled}{'.' * (30 - filled)}] {done}/{total} {what}\033[K", end="\n" if done == total else "",
              file=sys.stderr, flush=True)
    else:
        print(f"{done}/{total} {what}", file=sys.stderr, flush=True)


def kib(size: int) -> str:
    return f"{size / 1024:.1f}" if size else "-"


def print_table(rows: list[Row], heads: list[str], size_head: str) -> None:
    head = ["server", size_head, *heads, "prompt tokens", "KV pages", "KV KiB", "KiB as MHA"]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        cells = [row.server, str(row.size), *(f"{100 * r:.0f} %" for r in row.recalls), str(row.tokens),
                 str(row.kv_pages or "-"), kib(row.kv_bytes), kib(row.mha_bytes)]
        print("| " + " | ".join(cells) + " |")
    print()


def numbers(kind):
    return lambda text: [kind(part) for part in text.split(",")]


def options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("servers", nargs="+", metavar="[NAME=]URL", help="base URL without /v1")
    parser.add_argument("--lengths", type=numbers(int), default=[64, 128, 256, 512, 1024, 2048], help="prompt tokens, about")
    parser.add_argument("--depths", type=numbers(float), default=[0, 0.25, 0.5, 0.75, 1], help="0: first, 1: just before the question")
    parser.add_argument("--pairs", type=numbers(int), default=[4, 8, 16, 32, 64], help=f"at most {len(data.NAMES)}")
    parser.add_argument("--cases", type=int, default=10, help="per cell of the needle grid; four times as many per row of pairs")
    parser.add_argument("--parallel", type=int, default=8, help="requests at a time")
    parser.add_argument("--seed", default="e2e", help="other cases for another seed; all are held out from training")
    parser.add_argument("--api-key", help="for servers that want one")
    parser.add_argument("--require", type=float, default=0, help="least recall of a row, 0 to 1")
    parser.add_argument("--require-length", type=int, default=512, help="prompt tokens up to which --require holds")
    parser.add_argument("--json", help="also write the rows to this file")
    return parser.parse_args()


def measure(args, servers: list[Server]) -> list[Row]:
    rows, total = [], len(servers) * (len(args.lengths) + len(args.pairs))
    with concurrent.futures.ThreadPoolExecutor(args.parallel) as pool:
        for server in servers:
            for length in args.lengths:
                cases = [[data.needle_case(f"{args.seed}/{i}", length, depth) for i in range(args.cases)] for depth in args.depths]
                rows.append(run_row(pool, server, "needle", length, cases))
                progress(len(rows), total, f"{server.name} needle {length}")
            for count in args.pairs:
                cases = [[data.pairs_case(f"{args.seed}/{i}", count) for i in range(4 * args.cases)]]
                rows.append(run_row(pool, server, "pairs", count, cases))
                progress(len(rows), total, f"{server.name} pairs {count}")
    return rows


def main() -> int:
    args = options()
    try:
        named = [text.split("=", 1) if "=" in text.split("://")[0] else [text, text] for text in args.servers]
        servers = [Server(name, url, args.api_key) for name, url in named]
        rows = measure(args, servers)
    except RuntimeError as error:
        print(f"needle.py: {error}", file=sys.stderr)
        return 1
    print_table([row for row in rows if row.test == "needle"], [f"depth {d:g}" for d in args.depths], "length")
    print_table([row for row in rows if row.test == "pairs"], ["recall"], "pairs")
    if args.json:
        with open(args.json, "w") as f:
            json.dump([row._asdict() for row in rows], f, indent=1)
    low = [row for row in rows if row.tokens <= args.require_length and min(row.recalls) < args.require]
    for row in low:
        print(f"recall below {args.require}: {row.server} {row.test} {row.size}: {row.recalls}", file=sys.stderr)
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
