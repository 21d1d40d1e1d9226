"""A real Chromium without a window, driven through its DevTools protocol over a pipe: no packages are needed."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time

from harness import Skipped

CHROMIUM_NAMES = ("chromium", "google-chrome")


class Browser:
    """One page. Everything that it says, asks for and stumbles over is kept: console, requests, exceptions."""

    def __init__(self):
        program = next((path for path in map(shutil.which, CHROMIUM_NAMES) if path), None)
        if program is None:
            raise Skipped("no Chromium is installed; ./dev test installs it where Debian's package is to be had")
        self.profile = tempfile.TemporaryDirectory()
        to_browser, self.commands = os.pipe()
        self.replies, from_browser = os.pipe()

        def move_pipes():  # the protocol is spoken on descriptors 3 and 4
            read, write = os.dup(to_browser), os.dup(from_browser)
            os.dup2(read, 3)
            os.dup2(write, 4)

        self.process = subprocess.Popen(
            [program, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
             "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
             f"--user-data-dir={self.profile.name}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=move_pipes)
        os.close(to_browser)
        os.close(from_browser)
        self.answers, self.numbers, self.session = {}, 0, None
        self.waiting = threading.Condition()
        self.ended = False
        self.problems, self.urls, self.loads = [], [], 0
        threading.Thread(target=self._read, daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            os.close(self.commands)  # Chromium ends with its pipe
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.replies)
        for _ in range(20):  # its helpers may still be writing
            with contextlib.suppress(OSError):
                self.profile.cleanup()
                break
            time.sleep(0.1)
        return False

    def _read(self):
        rest = b""
        while True:
            try:
                data = os.read(self.replies, 1 << 16)
            except OSError:
                data = b""
            if not data:
                break
            *messages, rest = (rest + data).split(b"\0")
            for message in map(json.loads, messages):
                with self.waiting:
                    if "id" in message:
                        self.answers[message["id"]] = message
                        self.waiting.notify_all()
                    else:
                        self._note(message["method"], message.get("params", {}))
        with self.waiting:
            self.ended = True
            self.waiting.notify_all()

    def _note(self, method, params):
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str([one.get("value", one.get("description")) for one in params["args"]]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))
        elif method == "Page.loadEventFired":
            self.loads += 1
            self.waiting.notify_all()
        elif method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])

    def call(self, method, seconds=120, **params):
        with self.waiting:
            self.numbers += 1
            number = self.numbers
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        with self.waiting:
            assert self.waiting.wait_for(lambda: number in self.answers or self.ended, seconds), f"{method}: no answer in {seconds} s"
            assert number in self.answers, f"{method}: Chromium has ended"
            answer = self.answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def evaluate(self, expression, seconds=120):
        """The value of a JavaScript expression; a promise is waited for."""
        result = self.call("Runtime.evaluate", seconds, expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"].get("exception", result)
        return result["result"].get("value")

    def wait_for(self, expression, seconds=60):
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < deadline, f"not true after {seconds} s: {expression}"
            time.sleep(0.05)

    def open(self, url, width=1280, height=800, dark=False, scale=1, phone=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self._navigate("about:blank")
        self.problems.clear()
        self.urls.clear()
        self._navigate(url)

    def _navigate(self, url):
        loads = self.loads
        self.call("Page.navigate", url=url)
        with self.waiting:
            assert self.waiting.wait_for(lambda: self.loads > loads, 120), f"{url} was not loaded within 120 s"

    def screenshot(self, path, whole=True):
        """Of the whole page, or of what the window shows."""
        options = {"format": "png"}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options |= {"captureBeyondViewport": True, "clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))
