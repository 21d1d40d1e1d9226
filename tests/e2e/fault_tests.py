"""Faults around the process: a log that cannot be written, a wall clock that jumps, signals under load, clients that would forge log lines."""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import tempfile
import threading
import time
import unittest.mock

from api_tests import GREEDY, PROMPT
from harness import Server, Skipped, in_threads, open_socket, raw_request
from load_tests import PROMPTS

KILLS = int(os.environ.get("HEADROOM_KILLS", "3"))  # 100 for a release
YEAR = 365 * 86400


def read_all(connection):
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


class WallClock:
    """The wall clock of the servers started within; jump() moves it."""

    def __init__(self, binary):
        self.library = os.path.join(os.path.dirname(binary), "tests", "libwall_clock.so")
        if not os.path.exists(self.library):
            raise Skipped(f"{self.library} is not there: build the target wall_clock")

    def __enter__(self):
        self.file = tempfile.NamedTemporaryFile()
        self.jump(0)
        preload = {"LD_PRELOAD": self.library, "WALL_CLOCK_FILE": self.file.name, "ASAN_OPTIONS": "verify_asan_link_order=0"}
        self.environment = unittest.mock.patch.dict(os.environ, preload)
        self.environment.start()
        return self

    def jump(self, seconds):
        os.pwrite(self.file.fileno(), struct.pack("q", seconds), 0)

    def __exit__(self, kind, value, trace):
        self.environment.stop()
        self.file.close()


def tests(binary, model):
    def a_log_that_nobody_reads_stops_nothing():
        reader, unread = os.pipe()  # never read: 64 KiB fit
        for name, stderr in (("an unread pipe", unread), ("a full disk", os.open("/dev/full", os.O_WRONLY))):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            process = subprocess.Popen([binary, "serve", "--model", model, "--port", str(port), "--kv-memory", "64MiB", "--log-level", "debug"],
                                       stdout=stderr, stderr=stderr)
            try:
                began, answered = time.monotonic(), 0
                while answered < 2000:  # a line each
                    assert time.monotonic() - began < 60 and process.poll() is None, (name, answered, process.poll())
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                    with contextlib.suppress(ConnectionRefusedError), contextlib.closing(connection):
                        for _ in range(500):
                            connection.request("GET", "/readyz")
                            answered += connection.getresponse().read() != b""
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0, name
            finally:
                process.kill()
                os.close(stderr)
        os.close(reader)

    def the_wall_clock_does_not_matter():
        options = ("--kv-memory", "64MiB", "--keep-alive-seconds-max", "2", "--read-seconds-max", "2", "--stalled-seconds-max", "5")
        with WallClock(binary) as clock, Server(binary, model, *options) as server:
            server.may_end = True
            long = {"temperature": 0, "max_tokens": 2000, "ignore_eos": True}
            alone = server.complete(PROMPT, **long)
            assert abs(alone["created"] - time.time()) < 100
            ended = threading.Event()

            def jump():
                while not ended.wait(0.02):
                    clock.jump(random.choice((-YEAR, 0, YEAR)))
                    assert server.request("GET", "/readyz")[0] == 200, "a jump of the clock was taken for a stall"

            jumper = threading.Thread(target=jump)
            jumper.start()
            texts = in_threads(4, lambda _: server.complete(PROMPT, **long)["choices"][0]["text"])
            ended.set()
            jumper.join()
            assert texts == [alone["choices"][0]["text"]] * 4

            for seconds in (YEAR, -YEAR):
                clock.jump(0)
                idle, slow = open_socket(server.port), open_socket(server.port)
                idle.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert idle.recv(4096).startswith(b"HTTP/1.1 200")
                slow.sendall(b"GET /livez HTT")
                began = time.monotonic()
                clock.jump(seconds)
                moved = server.complete(PROMPT, **GREEDY)["created"] - time.time() - seconds
                assert abs(moved) < 100, "the server does not see this clock"
                for connection in (idle, slow):
                    connection.settimeout(5)
                    read_all(connection)
                    assert 1 < time.monotonic() - began < 5, "a deadline moved with the clock"
                    connection.close()

            # The time to drain is not over because the clock says so.
            connection = open_socket(server.port)
            connection.sendall(raw_request("POST", "/v1/completions", {"prompt": PROMPT, "stream": True, **long}))
            received = connection.recv(1000)
            server.process.send_signal(signal.SIGTERM)
            clock.jump(YEAR)
            assert (received + read_all(connection)).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            assert server.process.wait(30) == 0

    def terminated_at_any_time_it_cuts_nothing():
        rng = random.Random(KILLS)
        not_ready, complete, refused = [], 0, 0
        with Server(binary, model, "--kv-memory", "64MiB") as server:
            alone = [server.complete(prompt, temperature=0, max_tokens=300, ignore_eos=True)["choices"][0]["text"] for prompt in PROMPTS]
        for _ in range(KILLS):
            with Server(binary, model, "--kv-memory", "64MiB") as server:
                server.may_end = True
                plans = [(index % 8, rng.randrange(20, 300), rng.uniform(0, 0.5)) for index in range(32)]

                def stream(index):
                    which, tokens, delay = plans[index]
                    time.sleep(delay)
                    try:
                        with contextlib.closing(open_socket(server.port)) as connection:
                            connection.sendall(raw_request("POST", "/v1/completions", {
                                "prompt": PROMPTS[which], "temperature": 0, "max_tokens": tokens, "ignore_eos": True, "stream": True,
                                "stream_options": {"include_usage": True}}).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                            received = read_all(connection)
                    except (ConnectionRefusedError, BrokenPipeError, ConnectionResetError):
                        return False
                    if not received.startswith(b"HTTP/1.1 200"):
                        assert received == b"" or received.startswith(b"HTTP/1.1 503"), received
                        return False
                    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), received[-300:]
                    events = [json.loads(line[6:]) for line in received.split(b"\n") if line.startswith(b"data: {")]
                    text = "".join(event["choices"][0]["text"] for event in events if event["choices"])
                    assert alone[which].startswith(text) and events[-1]["usage"]["completion_tokens"] == tokens, (text, alone[which])
                    return True

                def terminate():
                    time.sleep(rng.uniform(0.05, 1))
                    signalled = time.monotonic()
                    server.process.send_signal(signal.SIGTERM)
                    last_ready = 0.0  # when the last one was sent that was told "ready": an answer may be late here, among 32 streams
                    with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):  # it may have ended by now
                        while True:
                            sent = time.monotonic() - signalled
                            if server.request("GET", "/readyz")[0] == 503:
                                break
                            last_ready = sent
                    not_ready.append(last_ready)

                outcomes = in_threads(33, lambda index: terminate() if index == 32 else stream(index))[:32]
                assert server.process.wait(45) == 0, server.log()
                complete += outcomes.count(True)
                refused += outcomes.count(False)
        assert max(not_ready) < 0.1, not_ready
        return (f"{KILLS} times: {complete} streams complete, {refused} not begun, exit 0; "
                f"told ready until {max(not_ready) * 1000:.0f} ms after it at most")

    def killed_under_load_it_starts_as_fast_as_ever():
        with Server(binary, model, "--kv-memory", "64MiB") as server:
            first = server.ready_seconds
        seconds = []
        for _ in range(KILLS):
            with Server(binary, model, "--kv-memory", "64MiB") as server:
                server.may_end = True
                seconds.append(server.ready_seconds)
                sockets = [open_socket(server.port) for _ in range(8)]
                for connection in sockets:
                    connection.sendall(raw_request("POST", "/v1/completions", {"prompt": PROMPT, "stream": True, "max_tokens": 400, "ignore_eos": True}))
                sockets[0].recv(100)
                server.process.kill()
                server.process.wait()
                for connection in sockets:
                    connection.close()
        assert max(seconds) <= first + 1, (seconds, first)
        return f"{KILLS} times, ready within {statistics.median(seconds):.2f} s in the median, {max(seconds):.2f} s at most; at first {first:.2f} s"

    def hostile_clients_write_no_line_of_the_log():
        forged = "2026-01-01 00:00:00.000 info forged"
        with Server(binary, model, "--kv-memory", "64MiB", "--log-level", "debug") as server:
            for head in (f"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\n{forged}\r\n\r\n", f"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {forged}\r\n\r\n",
                         f"GET /x%0a{forged.replace(' ', '%20')} HTTP/1.1\r\nHost: localhost\r\n\r\n", f"GET /{forged} HTTP/1.1\r\nHost: localhost\r\n\r\n",
                         f"{forged}\r\n\r\n", f"GET /livez HTTP/1.1\r\nHost: localhost\r\nUser-Agent: \x1b[31m{forged}\r\n\r\n"):
                with contextlib.closing(open_socket(server.port)) as connection:
                    connection.sendall(head.encode())
                    connection.recv(4096)
            server.post("/v1/completions", {"prompt": forged, "stop": [forged], "cache_salt": forged, "user": forged, **GREEDY})
            server.post("/v1/completions", {"prompt": forged, "model": forged})
            assert "forged" not in server.log(), server.log()
            assert "forged" not in server.request("GET", "/metrics")[2].decode()

    checks = [a_log_that_nobody_reads_stops_nothing, the_wall_clock_does_not_matter, terminated_at_any_time_it_cuts_nothing, killed_under_load_it_starts_as_fast_as_ever, hostile_clients_write_no_line_of_the_log]
    return [("fault: " + check.__name__.replace("_", " "), check) for check in checks]
