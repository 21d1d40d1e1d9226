"""Many clients at once: streams, disconnects, drain. Answers must not change, pages must come back."""

import contextlib
import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time

from api_tests import GREEDY, PROMPT, client_of, model_of
from harness import ROOT, Server, Skipped, in_threads, not_with_a_sanitizer, open_socket, raw_request

PROMPTS = [f"The password for {name} is {word}. What is the password for {name}?"
           for name, word in (("Anna", "walnut"), ("Boris", "river"), ("Clara", "stone"), ("David", "lamp"), ("Elena", "cloud"),
                              ("Felix", "bread"), ("Greta", "glass"), ("Hugo", "paper"))]
LONG = {"temperature": 0, "max_tokens": 64, "ignore_eos": True}


def assert_all_pages_back(server):
    server.wait_for_metric(0, "headroom_kv_pages", state="live")
    assert server.metric("vllm:num_requests_running") == 0 and server.metric("vllm:num_requests_waiting") == 0
    total = sum(value for series, value in server.metrics().items() if series.startswith("headroom_kv_bytes{"))
    assert total == server.metric("headroom_kv_pool_bytes")


def tests(server):
    def sixty_four_streams_at_once():
        alone = [server.complete(prompt, **LONG)["choices"][0]["text"] for prompt in PROMPTS]
        model = model_of(server)
        client = client_of(server)

        def run(index):
            stream = client.completions.create(model=model, prompt=PROMPTS[index % 8], stream=True, temperature=0, max_tokens=64,
                                               extra_body={"ignore_eos": True})
            return "".join(chunk.choices[0].text for chunk in stream)

        began = time.monotonic()
        texts = in_threads(64, run)
        assert all(text == alone[index % 8] for index, text in enumerate(texts)), "an answer differs from the one given alone"
        assert_all_pages_back(server)
        return f"{64 * 64 / (time.monotonic() - began):.0f} tokens/s"

    def a_thousand_disconnects():
        seed = random.SystemRandom().randrange(2**32)
        short = {**LONG, "max_tokens": 12}
        alone = server.complete(PROMPT, **short)["choices"][0]["text"]
        ended = threading.Event()
        others = []

        def steady():
            while not ended.is_set():
                others.append(server.complete(PROMPT, **short)["choices"][0]["text"])

        steady_threads = [threading.Thread(target=steady) for _ in range(2)]
        for thread in steady_threads:
            thread.start()

        def leave(index):
            rng = random.Random(seed * 64 + index)
            for _ in range(50):
                path, prompt = rng.choice((("/v1/completions", {"prompt": rng.choice(PROMPTS)}),
                                           ("/v1/chat/completions", {"messages": [{"role": "user", "content": rng.choice(PROMPTS)}]})))
                request = raw_request("POST", path, {**prompt, "max_tokens": 400, "ignore_eos": True, "n": rng.choice((1, 1, 2)),
                                                     "stream": rng.random() < 0.5, "cache_salt": str(rng.randrange(4))})
                connection = open_socket(server.port)
                if rng.random() < 0.1:
                    connection.sendall(request[:rng.randrange(len(request))])
                else:
                    connection.sendall(request)
                    time.sleep(rng.random() * rng.choice((0.001, 0.05, 0.5)))
                connection.close()

        try:
            in_threads(20, leave)
        finally:
            ended.set()
            for thread in steady_threads:
                thread.join()
        assert len(others) >= 4 and all(text == alone for text in others), f"an answer changed (seed {seed})"
        assert_all_pages_back(server)
        return f"{len(others)} answers of others unchanged"

    def pages_are_free_soon_after_a_disconnect():
        longest = {}
        for stream in (False, True):
            for _ in range(5):
                connection = open_socket(server.port)
                connection.sendall(raw_request("POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 4000, "ignore_eos": True, "stream": stream}))
                server.wait_for_metric(1, "vllm:num_requests_running")
                left = time.monotonic()
                connection.close()
                server.wait_for_metric(0, "headroom_kv_pages", seconds=2, state="live")
                longest[stream] = max(longest.get(stream, 0), time.monotonic() - left)
        return f"at most {longest[False] * 1000:.0f} ms whole, {longest[True] * 1000:.0f} ms streamed"

    def probes_answer_while_all_streams_run():
        sockets = []
        for _ in range(64):
            connection = open_socket(server.port)
            connection.sendall(raw_request("POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 2000, "ignore_eos": True, "stream": True}))
            sockets.append(connection)
        server.wait_for_metric(64, "vllm:num_requests_running")
        worst = 0.0
        for _ in range(50):
            began = time.monotonic()
            assert server.request("GET", "/livez")[0] == 200
            worst = max(worst, time.monotonic() - began)
        for connection in sockets:
            connection.close()
        assert_all_pages_back(server)
        assert worst < 1, worst
        return f"worst of 50 {worst * 1000:.0f} ms"

    def a_thousand_slow_clients_hold_nobody_up():
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
        request = raw_request("POST", "/v1/completions", {"prompt": PROMPT * 20})
        slow = []
        for index in range(1000):
            connection = open_socket(server.port)
            connection.setblocking(False)
            connection.sendall(request[:1 + index % (len(request) - 100)])  # within the head, or within the body
            slow.append((connection, 1 + index % (len(request) - 100)))
        began, latencies = time.monotonic(), []
        for second in range(9):
            for connection, at in slow:
                with contextlib.suppress(OSError):
                    connection.send(request[at + second:at + second + 1])
            while time.monotonic() < began + second + 1:
                asked = time.monotonic()
                assert server.request("GET", "/livez")[0] == 200
                latencies.append(time.monotonic() - asked)
                time.sleep(0.05)
        open_connections = len(slow)
        while open_connections > 0:
            assert time.monotonic() - began < 11, f"{open_connections} are still open"
            open_connections = 0
            for connection, _ in slow:
                try:
                    open_connections += connection.recv(4096) != b""
                except BlockingIOError:
                    open_connections += 1
                except OSError:
                    pass
            time.sleep(0.1)
        for connection, _ in slow:
            connection.close()
        latencies.sort()
        p99 = latencies[int(len(latencies) * 0.99)]
        assert p99 <= 0.05, p99
        return f"/livez p50 {latencies[len(latencies) // 2] * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms; all gone after {time.monotonic() - began:.1f} s"

    checks = [a_thousand_slow_clients_hold_nobody_up, sixty_four_streams_at_once, a_thousand_disconnects, pages_are_free_soon_after_a_disconnect, probes_answer_while_all_streams_run]
    return [("load: " + check.__name__.replace("_", " "), check) for check in checks]


def tests_with_own_server(binary, model):
    def sigterm_lets_what_runs_complete():
        with Server(binary, model, "--kv-memory", "64MiB") as server:
            server.may_end = True
            alone = server.complete(PROMPT, temperature=0, max_tokens=300, ignore_eos=True)["choices"][0]["text"]
            sockets = []
            for index in range(16):
                connection = open_socket(server.port)
                connection.sendall(raw_request("POST", "/v1/completions", {"prompt": PROMPT, "temperature": 0, "max_tokens": 300,
                                                                           "ignore_eos": True, "stream": index % 2 == 0}))
                sockets.append(connection)
            server.wait_for_metric(16, "vllm:num_requests_running")
            signalled = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            while server.request("GET", "/readyz")[0] != 503:
                assert time.monotonic() - signalled < 0.1
            not_ready = time.monotonic() - signalled
            # Not ready comes before refused: what arrives between the two is answered whole, as what ran before the signal is.
            while (refusal := server.post("/v1/completions", {"prompt": "x", "max_tokens": 4, "ignore_eos": True}))[0] != 503:
                assert refusal[0] == 200 and refusal[1]["usage"]["completion_tokens"] == 4, refusal
                assert time.monotonic() - signalled < 1, "requests are still taken a second after the signal"

            def read(index):
                received = b""
                while b"[DONE]" not in received and b'"kv_cache"' not in received:
                    part = sockets[index].recv(65536)
                    assert part, received[-200:]
                    received += part
                if index % 2 == 1:
                    return json.loads(received.partition(b"\r\n\r\n")[2])["choices"][0]["text"]
                events = [line[6:] for line in received.split(b"\n") if line.startswith(b"data: {")]
                return "".join(json.loads(event)["choices"][0]["text"] for event in events if json.loads(event)["choices"])

            assert in_threads(16, read) == [alone] * 16, "an answer was cut"
            assert server.process.wait(30) == 0, server.log()
            return f"not ready after {not_ready * 1000:.0f} ms, exit 0"

    def a_second_signal_ends_at_once():
        with Server(binary, model, "--kv-memory", "64MiB") as server:
            server.may_end = True
            connection = open_socket(server.port)
            connection.sendall(raw_request("POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 30000, "ignore_eos": True, "stream": True}))
            connection.recv(1000)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            assert server.process.poll() is None, "the first one waits for what runs"
            server.process.send_signal(random.choice((signal.SIGTERM, signal.SIGINT)))
            assert server.process.wait(2) == 1

    def a_flood_of_bodies_is_bounded_and_given_back():
        not_with_a_sanitizer("it keeps what was freed")
        with Server(binary, model, "--kv-memory", "16MiB", "--buffered-bytes-max", "64MiB") as server:
            server.complete(PROMPT, **GREEDY)
            before = server.memory_bytes()
            head = f"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {8 << 20}\r\n\r\n".encode()
            flood = []
            for _ in range(100):
                flood.append(open_socket(server.port))
                with contextlib.suppress(OSError):  # refused, and its rest not taken
                    flood[-1].sendall(head + b"x" * (3 << 19))
            assert server.request("GET", "/livez")[0] == 200
            most = server.memory_bytes("VmHWM") - before
            refused = 0
            for connection in flood:
                connection.setblocking(False)
                with contextlib.suppress(OSError):
                    refused += connection.recv(100).startswith(b"HTTP/1.1 503")
                connection.close()
            deadline = time.monotonic() + 10
            while server.memory_bytes() > before + (16 << 20):
                assert time.monotonic() < deadline, f"{(server.memory_bytes() - before) >> 20} MiB more than before are kept"
                time.sleep(0.01)
            assert most <= 72 << 20, f"{most >> 20} MiB at most"
            assert refused > 10, refused
            return f"150 MiB sent, {refused} of 100 refused, {most >> 20} MiB more at most, {(server.memory_bytes() - before) >> 20} MiB afterwards"

    def bodies_that_are_mostly_structure_are_parsed_in_turn_and_given_back():
        not_with_a_sanitizer("it keeps what was freed")
        with Server(binary, model, "--kv-memory", "16MiB") as server:
            server.complete(PROMPT, **GREEDY)
            before = server.memory_bytes()
            strings = raw_request("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1, "x": [""] * 1_000_000})
            parts = raw_request("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": []}] * 100_000})
            answers = []

            def send(index):
                with open_socket(server.port) as connection:
                    connection.settimeout(60)
                    connection.sendall((strings, parts)[index % 2])
                    answers.append(connection.recv(12))

            in_threads(16, send)
            assert sorted(answers) == [b"HTTP/1.1 200"] * 8 + [b"HTTP/1.1 400"] * 8, answers
            most = server.memory_bytes("VmHWM") - before
            deadline = time.monotonic() + 10
            while server.memory_bytes() > before + (16 << 20):
                assert time.monotonic() < deadline, f"{(server.memory_bytes() - before) >> 20} MiB more than before are kept"
                time.sleep(0.01)
            assert most <= (256 + 64) << 20, f"{most >> 20} MiB at most"
            return f"16 bodies of 4 MiB at once, {most >> 20} MiB more at most, {(server.memory_bytes() - before) >> 20} MiB afterwards"

    def probes_are_answered_when_streams_hold_all_they_may():
        with Server(binary, model, "--kv-memory", "64MiB", "--connections-max", "8", "--streams-max", "100") as server:
            body = {"prompt": PROMPT, "max_tokens": 30000, "ignore_eos": True, "stream": True}
            streams = []
            for _ in range(12):
                streams.append(open_socket(server.port))
                streams[-1].settimeout(10)
                streams[-1].sendall(raw_request("POST", "/v1/completions", body))
                with contextlib.suppress(OSError):
                    streams[-1].recv(100)
            for _ in range(20):
                assert server.request("GET", "/livez")[0] == 200
            for stream in streams:
                stream.close()
            assert "--streams-max is 6 and not 100" in server.log(), server.log()
            assert_all_pages_back(server)

    def attention_is_read_beside_what_runs():
        with Server(binary, model, "--kv-memory", "64MiB", "--introspection", "true") as server:
            ask = {"prompt": " ".join(PROMPTS), "layer": 1}
            alone = [server.complete(prompt, **LONG)["choices"][0]["text"] for prompt in PROMPTS]
            status, pattern = server.post("/v1/attention", ask)
            assert status == 200 and all(abs(sum(row) - 1) < 1e-4 for head in pattern["heads"] for row in head["rows"])
            answers = {200: 0, 503: 0}

            def run(index):
                for _ in range(4):
                    if index < 4:
                        status, answer = server.post("/v1/attention", ask)
                        answers[status] += 1
                        assert status == 503 or answer == pattern, "attention differs from the one read alone"
                    else:
                        text = server.complete(PROMPTS[index % 8], **LONG)["choices"][0]["text"]
                        assert text == alone[index % 8], "an answer differs from the one given alone"

            in_threads(20, run)
            assert answers[200] > 0
            assert_all_pages_back(server)
            return f"{answers[200]} of 16 beside 64 completions, {len(pattern['tokens'])} tokens each"

    def the_sweep_records_what_the_server_says():
        """tests/load/sweep.py, small: bytes by arithmetic, what can never fit, and more requests than fit."""
        if importlib.util.find_spec("aiohttp") is None or importlib.util.find_spec("tqdm") is None:
            raise Skipped("the packages aiohttp and tqdm are not installed; ./dev test installs them into build/venv")
        with Server(binary, model, "--kv-memory", "3MiB", "--running-sequences-max", "64", "--step-slowdown-max", "0") as server, tempfile.NamedTemporaryFile("r") as file:
            sweep = [sys.executable, os.path.join(ROOT, "tests/load/sweep.py"), f"gqa={server.base_url}"]
            done = subprocess.run([*sweep, "--contexts", "64,1000,20000", "--concurrency", "1,3", "--tokens", "16", "--saturate", "512",
                                   "--json", file.name], capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            record = json.load(file)
            token_bytes = server.metric("headroom_kv_token_bytes")
            assert record["servers"]["gqa"]["token_bytes"] == token_bytes
            fitting = [cell for cell in record["cells"] if "refused" not in cell]
            assert [(c["context"], c["concurrency"]) for c in fitting] == [(64, 1), (64, 3), (1000, 1), (1000, 3)]
            assert {c["context"] for c in record["cells"] if "refused" in c} == {20000}
            for cell in fitting:
                assert cell["kv_bytes_of_a_request"] == -(-(cell["context"] - 1) // 16) * 16 * token_bytes, cell  # the last token is not computed
                assert 0 < cell["ttft_seconds"] and cell["most_running"] <= cell["concurrency"], cell
            saturated = record["saturation"][0]
            assert saturated["most_usage"] > 0.8 and 2 <= saturated["most_at_once"] <= saturated["requests"], saturated
        unreachable = subprocess.run([*sweep[:2], "x=http://127.0.0.1:1"], capture_output=True, text=True, timeout=60)
        assert unreachable.returncode == 1 and unreachable.stderr.count("\n") == 1, unreachable

    checks = [sigterm_lets_what_runs_complete, the_sweep_records_what_the_server_says, a_flood_of_bodies_is_bounded_and_given_back, a_second_signal_ends_at_once,
              attention_is_read_beside_what_runs, bodies_that_are_mostly_structure_are_parsed_in_turn_and_given_back,
              probes_are_answered_when_streams_hold_all_they_may]
    return [("load: " + check.__name__.replace("_", " "), check) for check in checks]
