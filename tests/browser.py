"""A headless chromium over its pipe : messages of the DevTools protocol, each ended by a NUL."""

import base64
import contextlib
import io
import json
import os
import select
import subprocess
import time

from matplotlib.image import imread

ANSWER_seconds = 60  # on a busy machine
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-dev-shm-usage", "--force-device-scale-factor=1",
    "--remote-debugging-pipe", "about:blank",
)  # fmt: skip


class Browser:
    """A chromium with one page. `troubles` are what its console said: scripts' errors, what the policy refused."""

    def __init__(self, chromium, folder):
        ours, theirs = os.pipe(), os.pipe()  # commands go through the first, answers come through the second
        shell = ["bash", "-c", f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}']
        command = [*shell, chromium, f"--user-data-dir={folder}", *OPTIONS]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, pass_fds=(ours[0], theirs[1]), stdout=quiet, stderr=quiet)
        os.close(ours[0])
        os.close(theirs[1])
        self.to, self.back = ours[1], theirs[0]
        self.number, self.rest, self.session, self.troubles = 0, b"", None, []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.to)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()
        os.close(self.back)

    def ask(self, method, **params):
        """Result of a command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        return self.read(lambda answer: answer.get("id") == self.number)["result"]

    def read(self, wanted):
        """The next message that is wanted."""
        deadline = time.monotonic() + ANSWER_seconds
        while True:
            while b"\0" not in self.rest:
                ready, _, _ = select.select([self.back], [], [], max(deadline - time.monotonic(), 0))
                assert ready, "chromium does not answer"
                piece = os.read(self.back, 1 << 20)
                assert piece, "chromium has ended"
                self.rest += piece
            one, _, self.rest = self.rest.partition(b"\0")
            message = json.loads(one)
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.troubles.append(json.dumps(message["params"]))
            if wanted(message):
                return message

    def look(self, *, width=1200, height=640, scheme="light", script=True):
        """How pages are seen from now on."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask("Emulation.setScriptExecutionDisabled", value=not script)

    def open(self, url):
        """Go there, until it is loaded."""
        self.troubles.clear()
        self.ask("Page.navigate", url=url)
        self.read(lambda message: message.get("method") == "Page.loadEventFired")

    def value(self, expression):
        """What the expression is in the page."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"]
        assert result.get("subtype") != "error", result
        return result.get("value")

    def until(self, expression, seconds=30):
        """Wait until the expression is true in the page; its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.value(expression)):
            assert time.monotonic() < deadline, f"{expression} did not come true:\n{self.text()}"
            time.sleep(0.1)
        return value

    def text(self):
        return self.value("document.body.innerText")

    def png(self, whole=False):
        """A picture of the window, or of the whole page."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])

    def picture(self):
        """The window as an array [row, column, red green blue] of 0 to 255."""
        return (imread(io.BytesIO(self.png()))[:, :, :3] * 255).round().astype(int)
