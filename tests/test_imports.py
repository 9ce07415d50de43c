"""Imports point one way: read from the sources, against the rule of the design."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dataplane", "detectors", "controlplane", "endhost", "qoetap", "pcaps", "bench", "tests")

# What a module may import of this project; the longest name that covers it counts. A package stands for all in it.
MAY = {
    "dataplane": {"dataplane.cache"},
    "dataplane.cache": set(),
    "dataplane.records": set(),
    "dataplane.noblas": set(),
    "dataplane.kernels": {"dataplane.records", "dataplane.noblas"},
    "dataplane.memory": {"dataplane.records"},
    "dataplane.text": {"dataplane.records"},
    "dataplane.flowid": {"dataplane.records", "dataplane.text"},
    "dataplane.wire": {"dataplane.records", "dataplane.memory"},
    "dataplane.capture": {"dataplane.records", "dataplane.memory", "dataplane.kernels", "dataplane.chain"},
    "dataplane.chain": {"dataplane.records", "dataplane.kernels", "dataplane.memory"},
    "dataplane.relay": {
        "dataplane.records",
        "dataplane.memory",
        "dataplane.kernels",
        "dataplane.chain",
        "dataplane.batch",
    },
    "dataplane.batch": {
        "dataplane.records",
        "dataplane.memory",
        "dataplane.kernels",
        "dataplane.chain",
        "dataplane.wire",
    },
    "dataplane.flowtable": {"dataplane.records", "dataplane.memory"},
    "dataplane.loop": {
        "dataplane.records",
        "dataplane.memory",
        "dataplane.chain",
        "dataplane.flowtable",
        "detectors.base",
    },
    "dataplane.runner": {
        "dataplane.records",
        "dataplane.kernels",
        "dataplane.chain",
        "dataplane.flowtable",
        "detectors.base",
    },
    "dataplane.wheel": {"dataplane.records", "dataplane.memory"},
    "dataplane.pacing": {"dataplane.records", "dataplane.memory", "dataplane.wheel"},
    "dataplane.classify": {"dataplane.records", "dataplane.memory"},
    "dataplane.shim": {
        "dataplane",
        "dataplane.records",
        "dataplane.memory",
        "dataplane.kernels",
        "dataplane.chain",
        "dataplane.capture",
        "dataplane.wire",
        "dataplane.wheel",
        "dataplane.pacing",
        "dataplane.classify",
    },
    "dataplane.render": {"dataplane.records", "dataplane.text", "dataplane.flowid"},
    "dataplane.events": {
        "dataplane.records",
        "dataplane.kernels",
        "dataplane.render",
        "dataplane.text",
        "detectors.base",
    },
    "dataplane.evidence": {"dataplane.records", "dataplane.kernels"},
    "dataplane.ledger": {"dataplane.wire"},
    "dataplane.census": {"dataplane.records", "dataplane.kernels", "dataplane.memory"},
    "dataplane.listing": {"dataplane.records", "dataplane.kernels", "dataplane.text", "dataplane.wire"},
    "dataplane.sinks": {
        "dataplane.records",
        "dataplane.events",
        "dataplane.render",
        "dataplane.text",
        "dataplane.flowid",
    },
    "dataplane.engine": {
        "dataplane.records",
        "dataplane.kernels",
        "dataplane.batch",
        "dataplane.chain",
        "dataplane.relay",
        "dataplane.flowtable",
        "dataplane.runner",
        "dataplane.ledger",
        "dataplane.events",
    },
    "detectors": {"dataplane", "dataplane.records", "detectors.base"},
    "controlplane": {"controlplane", "dataplane.records"},
    "endhost": {"endhost", "dataplane.records", "dataplane.wire"},
    "qoetap": set(PACKAGES) - {"tests", "bench", "pcaps"},
    "pcaps": set(),
}
# Packages whose modules may import each other
PURE = ("dataplane.wire", "dataplane.sinks", "dataplane.capture", "qoetap", "pcaps")


def modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def imported(path, name):
    """Modules of this project that the file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            for alias in node.names:
                deeper = ROOT.joinpath(*node.module.split("."), f"{alias.name}.py")
                package = deeper.with_suffix("") / "__init__.py"
                found.add(f"{node.module}.{alias.name}" if deeper.exists() or package.exists() else node.module)
    return {module for module in found if module.split(".")[0] in PACKAGES}


def within(module, place):
    return module == place or module.startswith(place + ".")


def allowed(name):
    """What the module may import: the rule with the longest name that covers it."""
    rule = max((place for place in MAY if within(name, place)), key=len)
    own = {place for place in PURE if within(name, place)}
    return (set() if rule == "dataplane" and name != rule else MAY[rule]) | own


def is_allowed(module, places):
    """A package in `places` stands for all in it, but `dataplane` for itself only, so that its rules stay apart."""
    return any(module == p or (within(module, p) and p not in ("dataplane", "detectors")) for p in places)


@pytest.mark.parametrize("package", ["dataplane", "detectors", "controlplane", "endhost", "pcaps"])
def test_imports_point_one_way(package):
    wrong = [
        f"{name} imports {module}"
        for name, path in modules(package)
        for module in sorted(imported(path, name))
        if not is_allowed(module, allowed(name))
    ]
    assert not wrong


def test_every_module_has_a_rule():
    """A new module of the data plane gets a line in MAY, so that its place is thought about."""
    places = [place for place in MAY if place != "dataplane"]
    names = [name for name, _ in modules("dataplane") if name != "dataplane"]
    assert not [name for name in names if not any(within(name, place) for place in places)]


def test_only_the_command_line_knows_everything():
    """Nothing but qoetap, tests and benchmarks imports qoetap or the engine."""
    wrong = [
        f"{name} imports {module}"
        for package in ("dataplane", "detectors", "controlplane", "endhost", "pcaps")
        for name, path in modules(package)
        for module in imported(path, name)
        if within(module, "qoetap") or module == "dataplane.engine"
    ]
    assert not wrong


def test_the_command_line_starts_without_heavy_imports():
    """What `qoetap --help` loads: the parser and nothing of the data plane."""
    for name in ("__init__", "__main__", "cli", "exits", "say"):
        tree = ast.parse((ROOT / "qoetap" / f"{name}.py").read_text())
        top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        found = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in top}
        assert found <= {"argparse", "importlib", "os", "sys", "qoetap", "qoetap.exits", "qoetap.say", "qoetap.cli"}
