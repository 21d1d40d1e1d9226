#!/usr/bin/env python3
"""Three replicas behind the HAProxy of docker/haproxy: affinity, a drain, and one replica killed under load.

    tests/e2e/replicas.py --server build/cpu-release/headroom [--only TEXT]

The configuration is the repository's, with the addresses of this test. HAProxy comes from PATH or build/tools (./dev test unpacks it).
"""

import argparse
import collections
import contextlib
import glob
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from harness import JSON_HEADERS, ROOT, Server, Skipped, free_port, in_threads, run_tests

MODEL = os.path.join(ROOT, "configs/models/demo-gqa")
CLIENTS, REQUESTS_PER_CLIENT, RETRIES = 12, 12, 5
TOKENS = 200


class Router:
    """HAProxy with the repository's configuration in front of these servers."""

    def __init__(self, servers):
        unpacked = os.path.join(ROOT, "build/tools/usr/sbin/haproxy")
        program = shutil.which("haproxy") or (unpacked if os.access(unpacked, os.X_OK) else None)
        if program is None:
            raise Skipped("haproxy is not here (Debian's package haproxy); ./dev test unpacks it into build/tools")
        libraries = ":".join(glob.glob(os.path.join(ROOT, "build/tools/usr/lib/*-linux-gnu")))
        with open(os.path.join(ROOT, "docker/haproxy/haproxy.cfg")) as file:
            config = file.read()
        self.port, self.own_port = free_port(), free_port()
        config = config.replace("bind :8000", f"bind 127.0.0.1:{self.port}").replace("bind :8404", f"bind 127.0.0.1:{self.own_port}")
        for number, server in enumerate(servers, 1):
            config, count = re.subn(rf"replica-{number}:8000", f"127.0.0.1:{server.port}", config)
            assert count == 1
        self.file = tempfile.NamedTemporaryFile("w", suffix=".cfg")
        self.file.write(config)
        self.file.flush()
        self.log = tempfile.TemporaryFile()
        environment = {**os.environ, "LD_LIBRARY_PATH": libraries} if program == unpacked else None
        self.process = subprocess.Popen([program, "-db", "-f", self.file.name], stdout=self.log, stderr=self.log, env=environment)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)
        self.file.close()

    def complete(self, body):
        """(text, replica) of one attempt; raises when the answer is missing, refused or cut."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(body), JSON_HEADERS)
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                raise OSError(f"{response.status} {content[:200]}")
            if not body.get("stream"):
                return json.loads(content)["choices"][0]["text"], response.headers["x-served-by"]
            events = [line[6:] for line in content.decode().split("\n") if line.startswith("data: ")]
            if not events or events[-1] != "[DONE]":
                raise OSError("the stream was cut")
            texts = [choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"]]
            return "".join(texts), response.headers["x-served-by"]

    def own_metrics(self):
        """(series, value) of HAProxy's own exposition."""
        connection = http.client.HTTPConnection("127.0.0.1", self.own_port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        return [(series, float(value)) for series, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))]

    def own_metric(self, name):
        """Summed over its series."""
        return sum(value for series, value in self.own_metrics() if series.startswith(name + "{"))

    def up(self):
        """How many replicas HAProxy takes for ready."""
        return sum(value for series, value in self.own_metrics() if re.match(r'haproxy_server_status\{.*state="UP"', series))

    def wait_idle(self):
        """Until it counts no request: with few of them, one more is already more than a replica's share."""
        while self.own_metric("haproxy_server_current_sessions"):
            time.sleep(0.002)

    def wait_up(self, count, seconds=10):
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                if self.up() == count:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.log.seek(0)
                raise AssertionError(f"not {count} replicas ready after {seconds} s:\n" + self.log.read().decode(errors="replace"))
            time.sleep(0.02)


def request_of(client, turn):
    """A conversation per client that grows: its beginning stays."""
    prompt = f"The password for client {client} is walnut. " + "And so on. " * turn + f"What is the password for client {client}?"
    return {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": turn % 2 == 0}


class Tally:
    """What happened to the requests of all clients."""

    def __init__(self):
        self.lock = threading.Lock()
        self.first_try = self.retried = self.lost = 0
        self.done = 0
        self.texts, self.by_replica = {}, collections.Counter()

    def send(self, router, client, turn):
        for attempt in range(RETRIES + 1):
            try:
                text, replica = router.complete(request_of(client, turn))
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.05 * 2**attempt)
                continue
            with self.lock:
                self.done += 1
                self.first_try += attempt == 0
                self.retried += attempt > 0
                self.texts[client, turn] = text
                self.by_replica[replica] += 1
            return
        with self.lock:
            self.lost += 1

    def __str__(self):
        return f"{self.first_try} at the first try, {self.retried} after the client's retry, {self.lost} lost"


def tests(binary):
    def start(stack, count=3):
        # A stopped replica is part of these tests.
        servers = [stack.enter_context(Server(binary, MODEL, "--kv-memory", "32MiB", "--threads", "1")) for _ in range(count)]
        for server in servers:
            server.may_end = True
        router = stack.enter_context(Router(servers))
        router.wait_up(count)
        return servers, router

    def of_one_server(keys):
        """The answers that one server gives without a router."""
        with Server(binary, MODEL, "--kv-memory", "32MiB", "--threads", "1") as server:
            ask = lambda key: server.complete(**{**request_of(*key), "stream": False})["choices"][0]["text"]  # noqa: E731
            lanes = in_threads(CLIENTS, lambda lane: {key: ask(key) for key in keys if key[0] == lane})
            return {key: text for lane in lanes for key, text in lane.items()}

    def run_load(router, at_third):
        """All clients at once; calls at_third(tally) when a third of the requests is done."""
        tally = Tally()

        def client(index):
            for turn in range(REQUESTS_PER_CLIENT):
                tally.send(router, index, turn)

        def watch(_):
            while tally.done + tally.lost < CLIENTS * REQUESTS_PER_CLIENT // 3:
                time.sleep(0.005)
            at_third(tally)

        in_threads(CLIENTS + 1, lambda index: client(index) if index < CLIENTS else watch(index))
        return tally

    def one_killed_under_load_loses_nothing():
        with contextlib.ExitStack() as stack:
            servers, router = start(stack)

            def kill(_):
                deadline = time.monotonic() + 10
                while servers[0].metric("vllm:num_requests_running") == 0:  # in the middle of answers
                    assert time.monotonic() < deadline, "no request reached the replica that is to be killed"
                servers[0].process.kill()

            tally = run_load(router, kill)
            assert servers[0].process.wait(5) == -signal.SIGKILL
            router.wait_up(2)
            sent_again = router.own_metric("haproxy_backend_retry_warnings_total")
        assert tally.lost == 0 and tally.done == CLIENTS * REQUESTS_PER_CLIENT, str(tally)
        assert len(tally.by_replica) == 3, tally.by_replica
        assert tally.texts == of_one_server(tally.texts), "an answer differs from the one that one server gives"
        return f"{tally.done} of {CLIENTS * REQUESTS_PER_CLIENT} completed: {tally}; HAProxy sent {sent_again:.0f} again; answers equal"

    def a_drained_replica_is_not_noticed():
        with contextlib.ExitStack() as stack:
            servers, router = start(stack)
            tally = run_load(router, lambda _: servers[1].process.send_signal(signal.SIGTERM))
            assert servers[1].process.wait(60) == 0
        assert (tally.first_try, tally.retried, tally.lost) == (CLIENTS * REQUESTS_PER_CLIENT, 0, 0), str(tally)
        return str(tally)

    def what_begins_alike_stays_together():
        with contextlib.ExitStack() as stack:
            servers, router = start(stack)
            long = "A story that everybody is told. " * 80
            homes = {}
            for turn in range(3):
                for story in range(12):
                    body = {"prompt": f"{story} " + long + "x" * turn, "max_tokens": 1, "temperature": turn / 10}
                    router.wait_idle()
                    homes.setdefault(story, set()).add(router.complete(body)[1])
            assert all(len(home) == 1 for home in homes.values()), homes
            spread = collections.Counter(next(iter(home)) for home in homes.values())
            assert len(spread) >= 2, spread
            hits = sum(server.metric("vllm:prefix_cache_hits_total") for server in servers)
            asked = sum(server.metric("vllm:prefix_cache_queries_total") for server in servers)
            assert hits / asked > 0.6, (hits, asked)  # two of three turns; without affinity a turn finds its pages a third as often
            keyed = {router_of(router, {"prompt": f"story {n}", "max_tokens": 1}, "conversation 7") for n in range(8)}
            assert len(keyed) == 1, keyed
        return f"{hits / asked:.0%} of the prompt tokens found; stories by replica {dict(spread)}"

    def router_of(router, body, key):
        router.wait_idle()
        connection = http.client.HTTPConnection("127.0.0.1", router.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(body), {**JSON_HEADERS, "X-Affinity-Key": key})
            response = connection.getresponse()
            response.read()
            return response.headers["x-served-by"]

    checks = [one_killed_under_load_loses_nothing, a_drained_replica_is_not_noticed, what_begins_alike_stays_together]
    return [("replicas: " + check.__name__.replace("_", " "), check) for check in checks]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="the program headroom")
    parser.add_argument("--only", default="", help="run the tests whose name holds this text")
    arguments = parser.parse_args()
    return run_tests([(name, test) for name, test in tests(os.path.abspath(arguments.server)) if arguments.only in name])


if __name__ == "__main__":
    sys.exit(main())
