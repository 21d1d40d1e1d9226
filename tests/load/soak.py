#!/usr/bin/env python3
"""Does the server stay as it is? Mixed requests, of which a fifth are cancelled, then saturation while it is watched.

    tests/load/soak.py --server build/cpu-release/headroom [--requests 10000] [--minutes 0]

Each of --requests is drawn at random: chat or completion, streamed or whole, one choice or several, stop strings, log-probabilities, long
and short, of one of two API keys, or bad in some way; a fifth of the good ones is cut off by the client. After each tenth, when nothing
runs, memory, threads and file descriptors are read: memory may grow by 8 MiB at most after the first tenth, the others not at all.
--minutes keeps more requests in flight than the server can run, and asks /readyz and /livez each second: neither may say no.
Prints a line for each reading. Exit status 1 if something grew, was lost, or was answered wrongly.
"""

import argparse
import hashlib
import http.client
import json
import os
import random
import re
import sys
import tempfile
import threading
import time

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
sys.path.insert(0, os.path.join(ROOT, "tests/e2e"))
from harness import Server  # noqa: E402

GROWTH_BYTES_MAX = 8 << 20
KEYS = ("the key of alice", "the key of bob")
WORDS = "walnut river stone lamp cloud bread glass paper moon grass".split()
BAD = ({"prompt": ""}, {"prompt": "x", "max_tokens": -1}, {"prompt": "x", "n": 1000}, {"prompt": [-1]}, {"prompt": "x", "temperature": "hot"},
       {"messages": "x"}, {"prompt": "x", "max_tokens": 10**7}, {"prompt": "x", "model": "another"}, {"prompt": "x", "stop": ["s"] * 1000})


def draw(rng):
    """(path, body, bytes to read before leaving, 0 to leave before there is an answer, or None to read all)"""
    if rng.random() < 0.1:
        return "/v1/completions", rng.choice(BAD), None
    text = " ".join(rng.choice(WORDS) for _ in range(rng.choice((5, 50, 50, 400))))
    body = {"max_tokens": rng.choice((1, 8, 32, 128)), "temperature": rng.choice((0, 1)), "n": rng.choice((1, 1, 1, 2, 4)),
            "stream": rng.random() < 0.5, "ignore_eos": rng.random() < 0.5}
    if rng.random() < 0.3:
        body["stop"] = [rng.choice(WORDS), "\n"]
    if rng.random() < 0.3:
        body["stream_options"] = {"include_usage": True} if body["stream"] else None
    chat = rng.random() < 0.4
    if rng.random() < 0.2:
        body.update({"logprobs": True, "top_logprobs": 3} if chat else {"logprobs": 3, "echo": rng.random() < 0.5})
    body.update({"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text})
    leaves = (rng.choice((0, 1, 300)) if body["stream"] else 0) if rng.random() < 0.23 else None
    return "/v1/chat/completions" if chat else "/v1/completions", body, leaves


class Clients:
    """Threads that send what draw() gives, each on connections of its own, and count what comes of it."""

    def __init__(self, port, count, seed):
        self.port, self.count, self.seed = port, count, seed
        self.lock = threading.Lock()
        self.outcomes = {}
        self.wrong = []

    def note(self, outcome):
        with self.lock:
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def one(self, rng):
        path, body, leaves = draw(rng)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json",
                                                                "Authorization": "Bearer " + rng.choice(KEYS)})
            if leaves == 0:
                time.sleep(rng.random() * rng.choice((0.01, 0.5)))
                return self.note("cancelled")
            response = connection.getresponse()
            if leaves is not None and response.status == 200:
                response.read(leaves)
                return self.note("cancelled")
            answer = response.read()
            whole = answer.endswith(b"data: [DONE]\n\n") if body.get("stream") and response.status == 200 else answer.endswith(b"}")
            if body in BAD and response.status not in (400, 404) or body not in BAD and response.status not in (200, 429, 503) or not whole:
                with self.lock:
                    self.wrong.append((response.status, body, answer[-300:]))
            self.note(response.status)
        finally:
            connection.close()

    def run(self, requests=None, seconds=None):
        """`requests` of them, or as many as there is time for."""
        ends = None if seconds is None else time.monotonic() + seconds
        left = [requests]

        def work(index):
            rng = random.Random(f"{self.seed} {index} {requests}")
            while ends is None or time.monotonic() < ends:
                with self.lock:
                    if left[0] is not None:
                        if left[0] == 0:
                            return
                        left[0] -= 1
                try:
                    self.one(rng)
                except Exception as error:  # noqa: B902: a connection that breaks is what is looked for
                    with self.lock:
                        self.wrong.append((type(error).__name__, str(error), b""))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def reading(server):
    server.wait_for_metric(0, "headroom_kv_pages", seconds=60, state="live")
    threads = None
    for _ in range(300):  # connections that were left are seen as closed a moment later
        with open(f"/proc/{server.process.pid}/status") as status:
            threads = int(re.search(r"^Threads:\s+(\d+)", status.read(), re.M).group(1))
        descriptors = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        time.sleep(0.02)
    return {"memory": server.memory_bytes(), "threads": threads, "descriptors": descriptors}


def mixed_requests(server, requests, clients):
    first, faults = None, []
    for tenth in range(1, 11):
        began = time.monotonic()
        clients.run(requests=requests // 10)
        now = reading(server)
        print(f"{tenth * requests // 10:6} requests: {now['memory'] / 2**20:.1f} MiB, {now['threads']} threads, {now['descriptors']} descriptors, "
              f"{requests / 10 / (time.monotonic() - began):.0f} a second", flush=True)
        first = first or now
    if now["memory"] > first["memory"] + GROWTH_BYTES_MAX:
        faults.append(f"memory grew by {(now['memory'] - first['memory']) / 2**20:.1f} MiB")
    if now["threads"] > first["threads"] or now["descriptors"] > first["descriptors"]:
        faults.append("threads or descriptors grew")
    if clients.outcomes.get("cancelled", 0) < 0.15 * requests or clients.outcomes.get(200, 0) < 0.3 * requests:
        faults.append("the mixture is not what it should be")
    return faults


def saturated(server, minutes, clients):
    began, asked, refused, slowest, waiting = time.monotonic(), 0, [], 0.0, []
    load = threading.Thread(target=clients.run, kwargs={"seconds": minutes * 60})
    load.start()
    time.sleep(2)
    while load.is_alive() and time.monotonic() < began + minutes * 60:
        for path in ("/readyz", "/livez"):
            before = time.monotonic()
            status, _, body = server.request("GET", path)
            slowest = max(slowest, time.monotonic() - before)
            asked += 1
            if status != 200:
                refused.append((path, status, body, time.monotonic() - began))
        if asked % 20 == 0:
            waiting.append(server.metric("vllm:num_requests_waiting"))
        if asked % 1200 == 0:
            print(f"{(time.monotonic() - began) / 60:5.1f} minutes: {sum(clients.outcomes.values())} requests, {len(refused)} of {asked} probes "
                  f"refused, slowest {slowest * 1000:.0f} ms, {server.memory_bytes() / 2**20:.1f} MiB", flush=True)
        time.sleep(1)
    load.join()
    print(f"saturated for {(time.monotonic() - began) / 60:.1f} minutes: {len(refused)} of {asked} probes refused, slowest {slowest * 1000:.0f} ms; "
          f"{sum(1 for w in waiting if w > 0)} of {len(waiting)} looks found requests waiting; {clients.outcomes}", flush=True)
    faults = [f"refused: {one}" for one in refused[:5]]
    if sum(1 for w in waiting if w > 0) < 0.9 * len(waiting):
        faults.append("it was not saturated")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="the program headroom")
    parser.add_argument("--model", default=os.path.join(ROOT, "configs/models/demo-gqa"))
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        for name, key in zip(("alice", "bob weight=2"), KEYS):
            name, *limits = name.split()
            file.write(" ".join((name, hashlib.sha256(key.encode()).hexdigest(), *limits)) + "\n")
        file.flush()
        with Server(os.path.abspath(arguments.server), arguments.model, "--kv-memory", "16MiB", "--threads", "1", "--running-sequences-max", "16",
                    "--api-keys-file", file.name, "--metrics-public", "true", "--port", str(arguments.port)) as server:
            clients = Clients(server.port, arguments.clients, arguments.seed)
            faults = mixed_requests(server, arguments.requests, clients) if arguments.requests else []
            if arguments.minutes:
                clients.outcomes.clear()
                faults += saturated(server, arguments.minutes, clients)
            print(f"outcomes: {clients.outcomes}")
            faults += [f"wrong: {one}" for one in clients.wrong[:5]]
    for fault in faults:
        print(fault)
    print(f"CHECKS {1 - bool(faults)} passed, {int(bool(faults))} failed   (soak)")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
