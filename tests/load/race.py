#!/usr/bin/env python3
"""Races servers that speak OpenAI's streaming completions, in turn, under the same load: A B A B.

    tests/load/race.py headroom=http://127.0.0.1:8000 other=http://127.0.0.1:8080 --clients 8,32 --turns 3
    tests/load/race.py headroom=http://127.0.0.1:8000 --clients 8 --tokens 512 --intruders 3 --intruder-tokens 4000

A turn: that many clients at once, each streaming one request of random prompt tokens, the same for every server. Measured are tokens per second
of all, the time to the first token (median), and the gaps between tokens of one stream (median, p99, longest). With --intruders, so many
long prompts arrive one after another, for one token each, while the clients' streams run, and only the streams' gaps from the first intruder to
the end of the last count, and how long an intruder takes. Ratios are of the first server to each other one, turn by turn: median and range.
Needs nothing but Python.
"""

import argparse
import http.client
import json
import os
import random
import statistics
import sys
import time
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../e2e"))
from harness import in_threads  # noqa: E402

TOKEN_IDS = range(300, 900)  # ordinary tokens of any vocabulary


def stream(url, prompt, tokens, marks):
    """One request; appends the time of every event with a token. Returns when it was sent."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=600)
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True})
    began = time.monotonic()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{url}: {answer.status} {answer.read(300)!r}")
    for line in answer:
        if line.startswith(b"data: {") and b'"choices":[{' in line.replace(b" ", b""):
            marks.append(time.monotonic())
    connection.close()
    if len(marks) < tokens // 2:  # some servers hold tokens back that are no whole characters
        raise RuntimeError(f"{url}: a stream of {tokens} tokens had {len(marks)} events")
    return began


def turn(url, clients, args, seed):
    generator = random.Random(seed)
    prompts = [generator.choices(TOKEN_IDS, k=args.prompt_tokens) for _ in range(clients)]
    intruders = [generator.choices(TOKEN_IDS, k=args.intruder_tokens) for _ in range(args.intruders)]
    marks, ended, intrusions = [[] for _ in prompts], [], []

    def client(index):
        try:
            return stream(url, prompts[index], args.tokens, marks[index])
        finally:
            ended.append(index)

    def intrude():
        while min(len(each) for each in marks) < 8 and not ended:  # all of them run
            time.sleep(0.01)
        for prompt in intruders:
            intrusions.append(time.monotonic())
            stream(url, prompt, 1, [0.0])
        intrusions.append(time.monotonic())

    began = in_threads(clients + (1 if intruders else 0), lambda index: client(index) if index < clients else intrude())[:clients]
    since, until = (intrusions[0], intrusions[-1]) if intrusions else (0.0, float("inf"))
    gaps = sorted(b - a for each in marks for a, b in zip(each, each[1:]) if b >= since and a <= until)
    result = {"tokens_per_second": clients * args.tokens / (max(each[-1] for each in marks) - min(began)),
              "first_token_seconds": statistics.median(each[0] - sent for each, sent in zip(marks, began)),
              "gap_p50_seconds": statistics.median(gaps), "gap_p99_seconds": gaps[min(len(gaps) - 1, len(gaps) * 99 // 100)],
              "gap_longest_seconds": gaps[-1], "gap_longest_to_median": gaps[-1] / statistics.median(gaps)}
    if intrusions:
        result["intruder_seconds"] = (until - since) / args.intruders
    return result


def print_row(clients, name, values):
    print(f"{clients:>7}  {name:16}" + "".join(f"  {value:>24}" for value in values), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", metavar="NAME=URL")
    parser.add_argument("--clients", default="8,32")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--intruders", type=int, default=0)
    parser.add_argument("--intruder-tokens", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", help="file for every turn's figures")
    args = parser.parse_args()
    servers = dict(server.split("=", 1) for server in args.servers)
    record = []
    for name, url in servers.items():  # warms up
        stream(url, random.Random("warm").choices(TOKEN_IDS, k=16), 8, [])
    print_row("clients", "server", ["tokens/s", "first token p50, s", "gap p50, ms", "gap p99, ms", "longest gap, ms", "longest / median",
                                     *(["intruder's answer, s"] if args.intruders else [])])
    for clients in map(int, args.clients.split(",")):
        turns = {name: [] for name in servers}
        for number in range(args.turns):
            for name, url in servers.items():
                turns[name].append(turn(url, clients, args, f"{clients} {number}"))
                record.append({"server": name, "clients": clients, "turn": number, **turns[name][-1]})
        scale = {"gap_p50_seconds": 1e3, "gap_p99_seconds": 1e3, "gap_longest_seconds": 1e3}
        for name, rows in turns.items():
            print_row(clients, name, [spread([row[key] * scale.get(key, 1) for row in rows]) for key in rows[0]])
        first, *others = servers
        for other in others:
            pairs = list(zip(turns[first], turns[other]))
            print_row(clients, f"ratio to {other}"[:16], [spread([a[key] / b[key] for a, b in pairs]) for key in pairs[0][0]])
    if args.json:
        with open(args.json, "w") as file:
            json.dump(record, file, indent=1)
    return 0


def spread(values):
    return f"{statistics.median(values):.4g} ({min(values):.4g}-{max(values):.4g})"


if __name__ == "__main__":
    sys.exit(main())
