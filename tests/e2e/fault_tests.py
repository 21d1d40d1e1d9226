"""Faults around the process: a log that cannot be written, a kill under load, clients that would forge log lines."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time

from api_tests import GREEDY, PROMPT
from harness import Server, open_socket, raw_request

KILLS = int(os.environ.get("HEADROOM_KILLS", "3"))  # 100 for a release


def tests(binary, model):
    def a_log_that_nobody_reads_stops_nothing():
        reader, unread = os.pipe()  # never read: 64 KiB fit
        for name, stderr in (("an unread pipe", unread), ("a full disk", os.open("/dev/full", os.O_WRONLY))):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            process = subprocess.Popen([binary, "serve", "--model", model, "--port", str(port), "--kv-memory", "64MiB", "--log-level", "debug"],
                                       stdout=subprocess.DEVNULL, stderr=stderr)
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

    def killed_under_load_it_starts_as_fast_as_ever():
        with Server(binary, model, "--kv-memory", "64MiB") as server:
            first = server.ready_seconds
        slowest = 0.0
        for _ in range(KILLS):
            with Server(binary, model, "--kv-memory", "64MiB") as server:
                server.may_end = True
                slowest = max(slowest, server.ready_seconds)
                sockets = [open_socket(server.port) for _ in range(8)]
                for index, connection in enumerate(sockets):
                    connection.sendall(raw_request("POST", "/v1/completions", {"prompt": PROMPT, "stream": True, "max_tokens": 400, "ignore_eos": True}))
                sockets[0].recv(100)
                server.process.kill()
                server.process.wait()
                for connection in sockets:
                    connection.close()
        assert slowest <= first + 1, (slowest, first)
        return f"{KILLS} times ready within {slowest:.2f} s"

    def hostile_clients_write_no_line_of_the_log():
        forged = "2026-01-01 00:00:00.000 info forged"
        with Server(binary, model, "--kv-memory", "64MiB", "--log-level", "debug") as server:
            for head in (f"GET /livez HTTP/1.1\r\nHost: h\r\nX-Request-Id: a\n{forged}\r\n\r\n", f"GET /livez HTTP/1.1\r\nHost: h\r\nX-Request-Id: {forged}\r\n\r\n",
                         f"GET /x%0a{forged.replace(' ', '%20')} HTTP/1.1\r\nHost: h\r\n\r\n", f"GET /{forged} HTTP/1.1\r\nHost: h\r\n\r\n",
                         f"{forged}\r\n\r\n", f"GET /livez HTTP/1.1\r\nHost: h\r\nUser-Agent: \x1b[31m{forged}\r\n\r\n"):
                with contextlib.closing(open_socket(server.port)) as connection:
                    connection.sendall(head.encode())
                    connection.recv(4096)
            server.post("/v1/completions", {"prompt": forged, "stop": [forged], "cache_salt": forged, "user": forged, **GREEDY})
            server.post("/v1/completions", {"prompt": forged, "model": forged})
            assert "forged" not in server.log(), server.log()
            assert "forged" not in server.request("GET", "/metrics")[2].decode()

    checks = [a_log_that_nobody_reads_stops_nothing, killed_under_load_it_starts_as_fast_as_ever, hostile_clients_write_no_line_of_the_log]
    return [("fault: " + check.__name__.replace("_", " "), check) for check in checks]
