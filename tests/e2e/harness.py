"""What the end-to-end tests share: the server as a process, plain HTTP, metrics, and a runner that prints a line per test."""

import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
JSON_HEADERS = {"Content-Type": "application/json"}


def use_venv(package):
    """Starts over with the Python of build/venv, which ./dev test makes, if this one lacks the package."""
    python = os.path.join(ROOT, "build/venv/bin/python")
    if importlib.util.find_spec(package) is None and os.path.exists(python) and os.environ.get("HEADROOM_E2E_VENV") != "1":
        os.environ["HEADROOM_E2E_VENV"] = "1"
        os.execv(python, [python, *sys.argv])


class Skipped(Exception):
    """A test that cannot run here; its text says why."""


def not_with_a_sanitizer(reason):
    """Skips the test where the server was built with a sanitizer."""
    if os.environ.get("HEADROOM_SANITIZE"):
        raise Skipped(f"with a sanitizer: {reason}")


class Server:
    """`headroom serve` on a free port. Leaving the context ends it and checks that it had to be ended."""

    def __init__(self, binary, model, *options, environment=None):
        self.stderr = tempfile.TemporaryFile()
        self.started = time.monotonic()
        self.process = subprocess.Popen([binary, "serve", "--model", model, "--port", "0", *options], stdout=subprocess.DEVNULL,
                                        stderr=self.stderr, cwd=ROOT, env={**os.environ, **(environment or {})})
        self.port = self._wait_ready()
        self.ready_seconds = time.monotonic() - self.started
        self.base_url = f"http://127.0.0.1:{self.port}"

    def log(self):
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace")

    def _wait_ready(self):
        while time.monotonic() - self.started < 60:
            found = re.search(r"ready at http://\S+:(\d+)", self.log())
            if found:
                return int(found.group(1))
            if self.process.poll() is not None:
                break
            time.sleep(0.005)
        self.process.kill()
        raise AssertionError("the server did not become ready:\n" + self.log())

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        died = self.process.poll()
        if died is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise AssertionError("the server did not end on SIGTERM:\n" + self.log())
        elif kind is None and not getattr(self, "may_end", False):
            raise AssertionError(f"the server ended by itself with {died}:\n" + self.log())
        return False

    def request(self, method, path, body=None, headers=None, timeout=120):
        """Returns (status, headers, body as bytes)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            if isinstance(body, (dict, list)):
                body = json.dumps(body).encode()
            connection.request(method, path, body, JSON_HEADERS if headers is None else headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()

    def post(self, path, body, **arguments):
        status, _, text = self.request("POST", path, body, **arguments)
        return status, json.loads(text)

    def complete(self, prompt, **fields):
        status, answer = self.post("/v1/completions", {"prompt": prompt, **fields})
        assert status == 200, answer
        return answer

    def metrics(self):
        """{'name{labels}': value}"""
        _, _, text = self.request("GET", "/metrics")
        pairs = (line.rsplit(" ", 1) for line in text.decode().splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def metric(self, name, **labels):
        """The one series of that name whose labels include these."""
        found = [value for series, value in self.metrics().items()
                 if series.split("{")[0] == name and all(f'{key}="{text}"' in series for key, text in labels.items())]
        assert len(found) == 1, (name, labels, found)
        return found[0]

    def wait_for_metric(self, wanted, name, seconds=10, **labels):
        deadline = time.monotonic() + seconds
        while (value := self.metric(name, **labels)) != wanted:
            assert time.monotonic() < deadline, f"{name} {labels} is {value} and not {wanted} after {seconds} s"
            time.sleep(0.01)

    def memory_bytes(self, key="VmRSS"):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(rf"^{key}:\s+(\d+) kB", status.read(), re.M).group(1)) * 1024


def raw_request(method, path, body):
    body = json.dumps(body).encode()
    return (f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n").encode() + body


def open_socket(port):
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    return connection


def free_port():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def in_threads(count, run):
    """Calls run(i) for i in range(count), each on a thread of its own; the first exception is raised here."""
    errors, results = [], [None] * count

    def call(index):
        try:
            results[index] = run(index)
        except BaseException as error:  # noqa: B902: whatever it was belongs to the test
            errors.append(error)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def run_tests(tests):
    """Runs (name, function) pairs; prints a line for each and the count. Returns the exit status."""
    passed = failed = 0
    for name, test in tests:
        began = time.monotonic()
        try:
            note = test()
            outcome, passed = "ok", passed + 1
        except Skipped as reason:
            print(f"SKIPPED: {name}: {reason}", flush=True)
            continue
        except Exception:
            traceback.print_exc(file=sys.stdout)
            outcome, failed, note = "FAILED", failed + 1, None
        print(f"{outcome:6} {name} ({time.monotonic() - began:.1f} s){': ' + note if note else ''}", flush=True)
    print(f"E2E {passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0
