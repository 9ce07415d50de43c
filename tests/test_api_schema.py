"""The API does what its OpenAPI document says, whatever is asked: schemathesis, against a real `qoetap serve`.

A longer run by hand: EXAMPLES=2000 in the environment.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pages import MODEL
from tests.served import TOKEN, Served

HERE = Path(__file__).parent
PATH = "tap:001122fffe334455:0"
SITE = f"""
serve:
  requests: 100000
  aggregations:
    - {{name: ap, prefixes: [0.0.0.0/1, "2000::/3"]}}
  data_centres:
    - {{name: east, addresses: [192.0.2.1, "2001:db8::1"], paths: {{ap: "{PATH}"}}}}
    - {{name: west, addresses: [192.0.2.2], paths: {{ap: none}}}}
"""
EXAMPLES = os.environ.get("EXAMPLES", "5")  # of an operation, besides those that cover its schema


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    (folder / "site.yaml").write_text(SITE)
    with Served(folder, "-c", folder / "site.yaml", token=TOKEN) as running:
        whose = {"agent_id": "tap", "master_clock": "001122fffe334455", "domain": 0}
        now = time.time_ns()
        running.ask("/v1/delay", [{**whose, "ts_ns": now - i * 4 * 10**9, "delay_ns": 800_000 + i} for i in range(50)])
        running.ask(f"/v1/models/{PATH}", MODEL, "PUT")
        yield running


def test_the_document_names_every_route(served):
    paths = served.ask("/openapi.json")["paths"]
    assert paths["/v1/models/{path}"].keys() == {"get", "put"}
    assert paths.keys() == {
        "/", "/healthz", "/metrics", "/v1/curves", "/v1/curves/{content}", "/v1/delay", "/v1/events", "/v1/load",
        "/v1/load/stream", "/v1/models/{path}", "/v1/page-loads", "/v1/paths", "/v1/samples", "/v1/select",
    }  # fmt: skip


def test_schemathesis_finds_no_failure(served, tmp_path):
    found = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"), "run",
            f"{served.url}/openapi.json", "--max-examples", EXAMPLES, "--seed", "1",
            "--header", f"Authorization: Bearer {TOKEN}", "--generation-database", "none", "--report", "json",
            "--report-json-path", "report.json",
        ],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        capture_output=True, text=True, timeout=None if "EXAMPLES" in os.environ else 300,
    )  # fmt: skip
    print(found.stdout)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-3000:]
