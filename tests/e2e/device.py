#!/usr/bin/env python3
"""The server on a device and with a device that fails, end to end, on a machine that has none: tests/e2e/device_server.cc.

    tests/e2e/device.py --server build/cpu-release/tests/device_server [--only TEXT]
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time

from harness import ROOT, JSON_HEADERS, Server, in_threads, run_tests

PROMPT = "The password for Anna is walnut. What is the password for Anna?"
GREEDY = {"temperature": 0, "max_tokens": 6}
LONG = {"temperature": 0, "max_tokens": 2000, "ignore_eos": True, "stream": True}
MIB = 1 << 20


def reason_not_ready(server):
    """What /readyz says: None while ready, "gone" without a server."""
    try:
        status, _, text = server.request("GET", "/readyz", timeout=5)
    except OSError:
        return "gone"
    return None if status == 200 else json.loads(text)["reason"]


def read_stream(server, on_first=lambda: None):
    """The events of a stream, until it ends; None at the end of one that was cut."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    events = []
    with contextlib.closing(connection):
        try:
            connection.request("POST", "/v1/completions", json.dumps({"prompt": PROMPT, **LONG}).encode(), JSON_HEADERS)
            response = connection.getresponse()
            if response.status != 200:  # it came after the fault
                return [json.loads(response.read())]
            for line in response:
                if line.startswith(b"data: "):
                    if not events:
                        on_first()
                    events.append(line[6:].strip().decode())
                    if events[-1] == "[DONE]":
                        return [json.loads(event) for event in events[:-1]]
        except (OSError, http.client.HTTPException):
            pass
    return [*(json.loads(event) for event in events), None]


def tests(binary, model):
    def a_lost_device_ends_streams_and_the_process():
        options = ("--device", "cpu", "--kv-memory", "64MiB", "--threads", "1")
        with Server(binary, model, *options, environment={"HEADROOM_TEST_FAULT": "sticky:20000"}) as server:
            server.may_end = True
            streams = in_threads(4, lambda i: read_stream(server))
            told = time.monotonic()
            while (reason := reason_not_ready(server)) is None:
                assert time.monotonic() < told + 1, "ready a second after the device was lost"
            assert reason == "gone" or reason.startswith("faulted: ") and "injected" in reason, reason
            assert server.process.wait(10) == 1
            for events in streams:
                assert events[-1] is not None and "error" in events[-1], events[-1]
                assert "the model has failed" in events[-1]["error"]["message"], events[-1]
            assert "the model has failed: " in server.log()
            return f"ended {time.monotonic() - told:.2f} s after the streams"

    def a_lost_device_is_seen_by_probes():
        options = ("--device", "cpu", "--kv-memory", "64MiB", "--threads", "1")
        with Server(binary, model, *options, environment={"HEADROOM_TEST_FAULT": "sticky:0"}) as server:
            server.may_end = True
            reasons = set()

            def probe():
                deadline = time.monotonic() + 10
                while time.monotonic() < deadline and (reason := reason_not_ready(server)) != "gone":
                    reasons.add(reason)

            in_threads(2, lambda i: probe() if i else read_stream(server))
            assert server.process.wait(10) == 1
            assert any(reason and reason.startswith("faulted: begin_step: injected") for reason in reasons), reasons

    def out_of_memory_fails_one_request():
        options = ("--device", "cpu", "--kv-memory", "64MiB", "--threads", "1")
        with Server(binary, model, *options, environment={"HEADROOM_TEST_FAULT": "out_of_memory:1000"}) as server:
            events = read_stream(server)
            assert "out of memory" in events[-1]["error"]["message"], events[-1]
            assert reason_not_ready(server) is None
            assert server.complete(PROMPT, **GREEDY)["choices"][0]["finish_reason"] in ("stop", "length")

    def a_device_that_hangs_is_not_ready_and_ends_on_a_signal():
        options = ("--device", "cpu", "--kv-memory", "64MiB", "--threads", "1", "--stalled-seconds-max", "2", "--drain-seconds-max", "30")
        with Server(binary, model, *options, environment={"HEADROOM_TEST_FAULT": "hang:1000"}) as server:
            server.may_end = True
            hung = [None]

            def probe():
                time.sleep(1)
                while reason_not_ready(server) is None:
                    assert time.monotonic() < began + 10, "ready, although nothing gets on"
                    time.sleep(0.01)
                hung[0] = time.monotonic() - began
                assert reason_not_ready(server).startswith("stalled: ")
                assert server.request("GET", "/livez")[0] == 200
                server.process.send_signal(signal.SIGTERM)
                asked = time.monotonic()
                assert server.process.wait(30) == 1
                assert time.monotonic() < asked + 5, "what hangs is not waited for"

            began = time.monotonic()
            events = in_threads(2, lambda i: probe() if i else read_stream(server))[0]
            assert events[-1] is None and len(events) > 1, "the stream was cut after some tokens"
            assert "hangs" in server.log()
            return f"not ready after {hung[0]:.1f} s"

    def the_cuda_backend_serves():
        """As the CPU backend does, with the memory that it said it would take."""
        with Server(binary, model, "--device", "cpu", "--kv-memory", "4MiB") as server:
            expected = server.complete(PROMPT, **GREEDY)["choices"][0]["text"]
        options = ("--device", "cuda", "--running-sequences-max", "4", "--step-tokens-max", "64", "--context-tokens", "512")
        options += ("--introspection", "true")
        with Server(binary, model, *options, environment={"HEADROOM_TEST_DEVICE_MIB": "96"}) as server:
            answer = server.complete(PROMPT, **GREEDY)
            assert answer["choices"][0]["text"] == expected and answer["system_fingerprint"].endswith("_cuda"), answer
            attention = server.post("/v1/attention", {"prompt": "walnut is walnut", "layer": 1})[1]
            assert all(abs(sum(row) - 1) < 0.01 for head in attention["heads"] for row in head["rows"])
            parts = {}
            for part in ("weights", "activations", "workspaces", "kv_pool"):
                predicted = server.metric("headroom_memory_predicted_bytes", part=part)
                parts[part] = server.metric("headroom_memory_allocated_bytes", part=part)
                # A backend rounds matrices up to whole tiles, and what it takes for itself to whole lines.
                most = {"weights": predicted * 1.1, "workspaces": predicted + 4096}.get(part, predicted)
                assert 0 < predicted <= parts[part] <= most, (part, predicted, parts[part])
            total = server.metric("headroom_device_memory_bytes", state="total")
            free = server.metric("headroom_device_memory_bytes", state="free")
            assert total == 96 * MIB and abs(total - free - sum(parts.values())) < MIB / 4, (total, free, parts)
            assert "backend cuda: " in server.log() and "memory of the device: " in server.log()
            return ", ".join(f"{part} {int(size)}" for part, size in parts.items())

    def starts_that_do_not_fit_say_what_would():
        def failed(memory, *options, wanted):
            done = subprocess.run([binary, "serve", "--model", model, "--port", "0", "--device", "cuda", *options], capture_output=True, text=True,
                                  timeout=60, cwd=ROOT, env={**os.environ, "HEADROOM_TEST_DEVICE_MIB": str(memory)})
            lines = done.stderr.strip().split("\n")
            assert done.returncode == 1 and len(lines) == 1, done
            for text in wanted:
                assert text in lines[0], (wanted, lines[0])
            return lines[0]

        failed(0, wanted=["--device cuda: no CUDA device: "])
        failed(1, wanted=["the weights need 1.28 MiB, and 1 MiB of memory are free"])
        small = ("--running-sequences-max", "4", "--step-tokens-max", "64", "--context-tokens", "512")
        line = failed(64, *small, "--kv-memory", "80MiB", wanted=["a KV pool of 80 MiB does not fit into the ", "set --kv-memory to at most "])
        with Server(binary, model, "--device", "cuda", *small, "--kv-memory", line.split()[-1], environment={"HEADROOM_TEST_DEVICE_MIB": "64"}):
            pass
        failed(64, "--step-tokens-max", "65536", "--kv-memory", "1MiB", wanted=["activations and workspaces need ", "set --step-tokens-max or --running-sequences-max lower"])

    def any_call_of_a_start_may_fail():
        small = ("--device", "cuda", "--running-sequences-max", "4", "--step-tokens-max", "64", "--context-tokens", "512")
        lines, calls = set(), 1
        while True:
            try:
                with Server(binary, model, *small, environment={"HEADROOM_TEST_DEVICE_MIB": "64", "HEADROOM_TEST_DEVICE_CALLS": str(calls)}):
                    break
            except AssertionError as error:
                line = [text for text in str(error).strip().split("\n")[1:] if " info loading weights: " not in text]  # said where it takes long
                assert len(line) == 1 and line[0].startswith("headroom: ") and "cuda: " in line[0], error
                lines.add(line[0].split(": ")[1])
            calls += 13
        assert lines >= {"weights", "workspaces"}, lines
        return f"{calls // 13} starts failed at {', '.join(sorted(lines))}"

    def without_a_device_the_cpu_serves_and_the_log_says_why():
        with Server(binary, model, "--kv-memory", "4MiB", environment={"HEADROOM_TEST_DEVICE_MIB": "0"}) as server:
            assert "backend cpu: " in server.log() and "; not CUDA: no CUDA device: " in server.log(), server.log()

    return [(name.replace("_", " "), test) for name, test in locals().items() if callable(test)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    model = os.path.join(ROOT, "configs/models/demo-gqa")
    found = tests(os.path.abspath(arguments.server), model)
    return run_tests([(name, test) for name, test in found if arguments.only in name])


if __name__ == "__main__":
    sys.exit(main())
