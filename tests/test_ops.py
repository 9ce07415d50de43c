"""What lies in ops/ fits the program: queries name metrics that there are, the unit and the container are whole."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector

import detectors as registry
from dataplane.wire import REASONS
from qoetap import cli, config
from qoetap.metrics import AgentCollector
from tests.conftest import require
from tests.test_metrics import SNAPSHOT

ROOT = Path(__file__).resolve().parent.parent
OPS = ROOT / "ops"
DASHBOARD = json.loads((OPS / "grafana.json").read_text())
RULES = yaml.safe_load((OPS / "alerts.yml").read_text())["groups"][0]["rules"]
MANUAL = (ROOT / "docs" / "operations.md").read_text()
EXPOSURE_MOST = 20  # tenths, of systemd-analyze's 0 to 10

# What Prometheus itself adds to each series, and the series that it makes
TARGET = {"instance", "job"}
SYNTHETIC = ("up",)
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "bool"}
STRING = re.compile(r'"[^"]*"')
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


def panels():
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


QUERIES = [
    pytest.param(target["expr"], target["legendFormat"], id=f"{panel['title']} {target['refId']}")
    for panel in panels()
    for target in panel["targets"]
] + [pytest.param(rule["expr"], rule["annotations"]["summary"], id=rule["alert"]) for rule in RULES]


@pytest.fixture(scope="module")
def exported():
    """{metric: [labels of its series]} of an agent with every detector."""
    counts = SNAPSHOT["states"]["flow"]
    snapshot = {**SNAPSHOT, "states": dict.fromkeys(registry.load_all(), counts)}
    collectors = CollectorRegistry()
    collectors.register(AgentCollector(lambda: snapshot))
    ProcessCollector(registry=collectors)
    found = {name: [{}] for name in SYNTHETIC}
    for family in collectors.collect():
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def metrics_in(expr):
    """Names of metrics in a query: identifiers that are no function, label, keyword or variable."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", " ", STRING.sub('""', expr))
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", " ", bare)
    names = re.findall(r"(?<![\w$.])([a-zA-Z_]\w*)\b(?!\s*\()", bare)
    return {name for name in names if name not in WORDS and not re.search(rf"\b{name}\s+\(", bare)}


def selections(expr):
    """(metric, [(label, operator, value)]) of each selector with labels in a query."""
    return [(name, MATCHER.findall(inner)) for name, inner in re.findall(r"(\w+)\s*\{([^}]*)\}", expr)]


def grouped_by(expr):
    found = re.findall(r"\bby\s*\(([^)]*)\)", expr)
    return {label.strip() for inner in found for label in inner.split(",")}


def labels_shown(text):
    """Labels that a legend or an annotation names."""
    return set(re.findall(r"\{\{\s*(?:\$labels\.)?([a-z_]+)\b[^}]*\}\}", text)) - {"value"}


def test_names_are_found_in_queries():
    """The reader of queries sees what it should, or the tests below see nothing."""
    expr = 'sum by (reason) (rate(a_total{x="sum_x"}[5m])) / b_c > 0.1 and on (instance) d == 1 or vector(0)'
    assert metrics_in(expr) == {"a_total", "b_c", "d"}
    assert selections(expr) == [("a_total", [("x", "=", "sum_x")])]
    assert grouped_by(expr) == {"reason"}
    assert labels_shown("{{a}} {{ $labels.b }} {{ $value | humanize }}") == {"a", "b"}


@pytest.mark.parametrize("expr, text", QUERIES)
def test_queries_name_what_is_exported(expr, text, exported):
    names = metrics_in(expr)
    assert names and names <= exported.keys(), names - exported.keys()
    for name, matchers in selections(expr):
        for label, operator, value in matchers:
            has = [labels.get(label) for labels in exported[name]]
            assert label in TARGET or any(has), f"{name} has no label {label}"
            if operator in ("=", "!=") and label not in TARGET:
                assert value in has, f"{name} has no {label} {value}"
    common = TARGET.union(*(set(labels) for name in names for labels in exported[name]))
    groups = grouped_by(expr)
    assert groups <= common
    assert labels_shown(text) <= (groups or common)
    if re.search(r"\b(sum|count|max|min)\b", expr) and not groups:
        assert not labels_shown(text)


def test_the_dashboard_asks_only_for_the_chosen_agents():
    for panel in panels():
        for target in panel["targets"]:
            found = selections(target["expr"])
            assert {name for name, _ in found} == metrics_in(target["expr"])
            assert all(("instance", "=~", "$instance") in matchers for _, matchers in found)


def test_the_dashboard_is_whole():
    """What Grafana's classic model asks for: numbers of their own, a datasource by variable, no overlap."""
    assert DASHBOARD["schemaVersion"] >= 39 and DASHBOARD["id"] is None and DASHBOARD["title"]
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    assert "qoetap_build_info" in variables["instance"]["definition"]
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    cells = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        own = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
        assert max(x for x, _ in own) < 24 and not own & cells, panel["title"]
        cells |= own
    for panel in panels():
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
        assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_every_metric_is_shown_or_watched(exported):
    used = set().union(*(metrics_in(param.values[0]) for param in QUERIES))
    assert {name for name in exported if name.startswith("qoetap_")} <= used


def test_the_manual_explains_every_alert_and_reason():
    for rule in RULES:
        assert f"`{rule['alert']}`" in MANUAL, rule["alert"]
    for reason in REASONS[1:]:
        assert f"`{reason}`" in MANUAL, reason


def test_the_scrape_example_is_one():
    example = yaml.safe_load((OPS / "prometheus.yml").read_text())
    assert example["rule_files"] == ["alerts.yml"]
    jobs = [job["job_name"] for job in example["scrape_configs"]]
    assert all(re.fullmatch("qoetap.*", job) for job in jobs)  # as the alerts ask for them


def unit(name):
    """The unit's settings: {name: [values]}."""
    found = {}
    for line in (OPS / name).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture(params=["qoetap.service", "qoetap-serve.service", "qoetap-dns.service"])
def verifiable(request, tmp_path):
    """A copy of a unit whose program exists."""
    copy = tmp_path / request.param
    copy.write_text((OPS / request.param).read_text().replace("/opt/qoetap/bin/qoetap", "/bin/true"))
    return copy


def analyze(*words):
    """Run systemd-analyze; (status, what it said)."""
    require(shutil.which("systemd-analyze"), "systemd-analyze is not installed (apt install systemd)")
    done = subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_systemd_takes_the_unit(verifiable):
    assert analyze("verify", "--man=no", verifiable) == (0, "")
    verifiable.write_text(verifiable.read_text().replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))
    assert "'NoNewPrivilege'" in analyze("verify", "--man=no", verifiable)[1]


def test_the_sandbox_is_as_narrow_as_the_manual_says(verifiable):
    status, said = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MOST}", "--no-pager", verifiable)
    assert status == 0, said
    assert re.search(r"exposure of (\d\.\d)", MANUAL)


def test_the_unit_asks_for_what_live_needs():
    found = unit("qoetap.service")
    assert found["AmbientCapabilities"] == found["CapabilityBoundingSet"] == ["CAP_NET_RAW"]
    assert found["MemoryDenyWriteExecute"] == ["no"] and "PrivateNetwork" not in found and "PrivateUsers" not in found
    assert "AF_PACKET" in found["RestrictAddressFamilies"][0].split() and found["Type"] == ["notify"]
    assert found["Environment"] == ["QOETAP_CACHE_DIR=%C/qoetap"] and found["CacheDirectoryMode"] == ["0700"]
    program, *words = found["ExecStart"][0].split()
    args, module, _ = cli.parse(words)
    assert program.endswith("/qoetap") and module == "qoetap.live" and args.config == "/etc/qoetap/qoetap.yaml"


def test_the_unit_of_serve_asks_for_nothing():
    found = unit("qoetap-serve.service")
    assert found["CapabilityBoundingSet"] == [""] and "AmbientCapabilities" not in found and found["Type"] == ["notify"]
    assert "AF_PACKET" not in found["RestrictAddressFamilies"][0] and found["MemoryDenyWriteExecute"] == ["no"]
    assert "ProcSubset" not in found  # /proc/stat, without which the process_ metrics are missing
    program, *words = found["ExecStart"][0].split()
    args, module, _ = cli.parse(words)
    assert program.endswith("/qoetap") and module == "qoetap.serve" and args.config == "/etc/qoetap/qoetap.yaml"


def test_the_unit_of_dns_asks_for_its_port():
    found = unit("qoetap-dns.service")
    assert found["AmbientCapabilities"] == found["CapabilityBoundingSet"] == ["CAP_NET_BIND_SERVICE"]
    assert "AF_PACKET" not in found["RestrictAddressFamilies"][0] and "PrivateUsers" not in found
    program, *words = found["ExecStart"][0].split()
    args, module, _ = cli.parse(words)
    assert program.endswith("/qoetap") and module == "qoetap.dns" and args.config == "/etc/qoetap/qoetap.yaml"


def test_the_container_holds_the_packages():
    text = (OPS / "Containerfile").read_text()
    setup = (ROOT / "setup.py").read_text()
    packages = re.search(r"^PACKAGES = \((.*)\)$", setup, re.MULTILINE)[1]
    for name in re.findall(r'"(\w+)"', packages):
        assert f"COPY {name} /src/{name}\n" in text or not list((ROOT / name).glob("*.py"))
    for words in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in words.split()[:-1]), words
    for extra in re.search(r"/src\[([\w,]+)\]", text)[1].split(","):
        assert f'"{extra}": ' in setup
    assert "libpcap0.8" in text and "cap_net_raw+ep" in text and "\nUSER qoetap\n" in text
    assert "no-new-privileges" in text  # it must stay off, or the file's capability is void


def test_the_manual_names_keys_that_there_are():
    known = config.known_keys(config.config_model(registry.load_all()))
    named = set(re.findall(r"`((?:live|detectors)\.[a-z_.]+)`", MANUAL))
    assert named and named <= set(known), named - set(known)
