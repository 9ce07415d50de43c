"""A real `qoetap serve` for tests: its process, and a few requests to it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

START_seconds = 60  # on a busy machine
TOKEN = "a-token-of-the-tests"


class Served:
    """`qoetap serve` on a free port of loopback, with its state in `folder`, until the `with` ends."""

    def __init__(self, folder, *options, token=None, stdin=b""):
        self.log = folder / "serve.log"
        state = folder / "state.sqlite"
        command = [sys.executable, "-m", "qoetap", "serve", "--listen", "127.0.0.1:0", "--state", state]
        environ = {**os.environ, **({"QOETAP_SERVE_TOKEN": token} if token else {})}
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        (folder / "stdin").write_bytes(stdin)
        with self.log.open("w") as log, (folder / "stdin").open("rb") as given:
            self.process = subprocess.Popen([*command, *options], stdin=given, stderr=log, env=environ)

    def __enter__(self):
        deadline = time.monotonic() + START_seconds
        while not (said := re.search(r"http://[\d.:]+", self.log.read_text())):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        self.url = said[0]
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        finally:
            self.process.kill()

    def ask(self, where, value=None, method=None):
        """What is answered to a GET, or to a POST (or another method) of a value as JSON."""
        data = None if value is None else json.dumps(value).encode()
        headers = self.headers | ({"Content-Type": "application/json"} if data else {})
        request = urllib.request.Request(self.url + where, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)
