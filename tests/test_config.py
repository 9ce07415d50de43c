"""The configuration: every wrong key or value is one sentence that names it, every right one reaches the detector."""

from pathlib import Path

import numpy as np
import pytest

import detectors as registry
from dataplane.records import IP
from detectors.base import CHOICE, COUNT, DURATION, FLAG, NUMBER, Detector, Option
from qoetap import config
from qoetap.durations import UNITS_NS, duration_text, parse_duration
from qoetap.sizes import parse_size, size_text
from tests.helpers import run

DEFAULTS = Path(config.__file__).with_name("defaults.yaml")
MINUTE_NS = 60 * 10**9

OPTIONS = (
    Option("wait", "200ms", DURATION, "how long", low=1000),
    Option("most", 3, COUNT, "how many", low=2),
    Option("strict", True, FLAG, "whether"),
    Option("mode", "fast", CHOICE, "which way", ("slow", "fast")),
    Option("factor", 1.5, NUMBER, "how much", low=0.5),
)


def prepare(params):
    if params.most > 100:
        raise ValueError("most is above 100: choose less.")
    params.most += 1


TOY = Detector("toy", IP, None, None, (), OPTIONS, None, None, None, capacity=128, prepare=prepare)
KNOWN = {"toy": TOY}


def loaded(text, tmp_path):
    """The effective configuration of a file."""
    path = tmp_path / "site.yaml"
    path.write_text(text)
    return config.load([config.read_file(str(path))], KNOWN)


def complaint(text, tmp_path):
    with pytest.raises(config.ConfigError) as error:
        loaded(text, tmp_path)
    assert error.value.status == 2
    return str(error.value).removeprefix(str(tmp_path) + "/")


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("200ms", 200 * 10**6),
        ("3s", 3 * 10**9),
        ("2m", 2 * MINUTE_NS),
        ("1h", 60 * MINUTE_NS),
        ("1.5us", 1500),
        ("7ns", 7),
    ]
    + [
        (2, 2 * 10**9),
        (0.25, 250 * 10**6),
        (0.1, 10**8),
        ("0s", 0),
        (" 5 s ", 5 * 10**9),
        ("3650d", 3650 * UNITS_NS["d"]),
    ],
)
def test_durations_are_read_exactly(text, ns):
    assert parse_duration(text) == ns
    assert parse_duration(duration_text(ns)) == ns


@pytest.mark.parametrize(
    "text", ["", "3", "3 weeks", "-1s", "1e3s", True, None, [], -1, "3651d", float("inf"), float("nan"), "٣s"]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_options_become_a_params_row(tmp_path):
    text = "detectors: {toy: {wait: 3s, most: 7, strict: false, mode: slow, factor: 2}}"
    params = config.build_params(TOY, loaded(text, tmp_path).detectors.toy, b"key")[0]
    assert (params.wait, params.most, params.strict, params.mode, params.factor) == (3 * 10**9, 8, 0, 0, 2.0)
    assert (
        params.dtype["wait"] == np.int64 and params.dtype["strict"] == np.uint8 and params.dtype["secret"] == np.uint64
    )


def test_defaults_are_those_of_the_options(tmp_path):
    section = loaded("", tmp_path).detectors.toy
    assert (section.enabled, section.capacity, section.wait, section.mode) == (True, 128, 200 * 10**6, "fast")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("detectors: {toy: {wiat: 1s}}", "site.yaml: unknown key detectors.toy.wiat, did you mean detectors.toy.wait?"),
        ("toy: {wait: 1s}", "site.yaml: unknown key toy, did you mean detectors.toy?"),
        ("worker: 2", "site.yaml: unknown key worker, did you mean workers?"),
        ("detectors: {toys: {}}", "site.yaml: unknown key detectors.toys, did you mean detectors.toy?"),
        ("detectors: {toy: {wait: 1ns}}", "site.yaml: detectors.toy.wait: the least is 1us, not '1ns'"),
        ("detectors: {toy: {most: 1}}", "site.yaml: detectors.toy.most: should be greater than or equal to 2, not 1"),
        ("detectors: {toy: {most: 2.5}}", "site.yaml: detectors.toy.most: must be a whole number, not 2.5"),
        ("detectors: {toy: {strict: 1}}", "site.yaml: detectors.toy.strict: must be true or false, not 1"),
        ("detectors: {toy: {mode: x}}", "site.yaml: detectors.toy.mode: should be 'slow' or 'fast', not 'x'"),
        ("detectors: 3", "site.yaml: detectors: must hold keys and values, not 3"),
        ("outputs: x", "site.yaml: outputs: must be a list, not 'x'"),
        ("outputs: http://u:pw@h/x?pw", "site.yaml: outputs: must be a list, not 'http://***@h/x?***'"),
        ("outputs: {kafka: pw}", "site.yaml: outputs: must be a list, not a dict"),
        ("rotate_size: 1.5MiB", "site.yaml: rotate_size: write a size as a whole number and a unit"),
        ("rotate_size: 2048TB", "site.yaml: rotate_size: write a size"),
        ("rotate_size: 1125899906842625", "site.yaml: rotate_size: a size is at most 1048576GiB"),
        ("rotate_every: 1w", "site.yaml: rotate_every: write a duration as a number and a unit (200ms, 3s, 2m, 1h)"),
        ("a: [", "site.yaml: line 1: not valid YAML"),
        ("- a", "site.yaml: must hold keys and values"),
        ("!!python/object:os.system {}", "site.yaml: line 1: not valid YAML"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, text, sentence):
    assert complaint(text, tmp_path).startswith(sentence)


def test_an_unknown_key_far_from_all_names_those_there_are(tmp_path):
    assert complaint("zzz: 1", tmp_path).endswith(
        "; there are agent_id, workers, batch_rows, tunnels, filter, seed, outputs, rotate_every, rotate_size, live, "
        "inline, serve, dns, detectors"
    )


def test_a_detectors_own_check_is_a_sentence_too(tmp_path):
    assert complaint("detectors: {toy: {most: 101}}", tmp_path).endswith(
        "detectors.toy: most is above 100: choose less"
    )
    assert loaded("detectors: {toy: {most: 101, enabled: false}}", tmp_path).detectors.toy.most == 101


def test_a_later_layer_wins_and_is_named(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("workers: 3\ndetectors:\n  toy:\n    most: 5\n")
    layers = [config.read_file(str(path)), config.assignment("detectors.toy.most=9")]
    settings = config.load(layers, KNOWN)
    assert (settings.workers, settings.detectors.toy.most) == (3, 9)
    with pytest.raises(config.ConfigError, match="^--set: detectors.toy.most"):
        config.load([*layers, config.assignment("detectors.toy.most=none")], KNOWN)


@pytest.mark.parametrize("text", ["workers", "=1", "workers=[", ""])
def test_a_bad_assignment_is_refused(text):
    with pytest.raises(config.ConfigError, match="--set"):
        config.assignment(text)


def test_empty_sections_are_the_defaults(tmp_path):
    texts = ("", "detectors:\n", "detectors:\n  toy:\n")
    assert len({loaded(text, tmp_path).model_dump_json() for text in texts}) == 1


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("4096", 4096), ("256MiB", 1 << 28), ("1 GB", 10**9), ("3kB", 3000), ("7B", 7)]
)
def test_sizes(tmp_path, text, size):
    assert loaded(f"rotate_size: {text}", tmp_path).rotate_size == size
    assert parse_size(size_text(size)) == size


def test_tunnels(tmp_path):
    assert config.tunnel_bits(loaded("tunnels: all", tmp_path)) == 63
    assert config.tunnel_bits(loaded("tunnels: [gre, gre, vxlan]", tmp_path)) == 9
    assert config.tunnel_bits(loaded("tunnels: 'vxlan,gre'", tmp_path)) == 9
    assert "should be 'gre'" in complaint("tunnels: [tor]", tmp_path)


def test_the_seed_fixes_every_key():
    assert config.root_secret(7) == config.root_secret(7) != config.root_secret(8)
    assert config.root_secret(None) != config.root_secret(None)
    assert config.derive(config.root_secret(7), b"a") != config.derive(config.root_secret(7), b"b")


def test_a_file_that_cannot_be_read(tmp_path):
    assert run("check", tmp_path / "none.yaml").status == 2
    (tmp_path / "latin.yaml").write_bytes(b"agent_id: \xff")
    ended = run("check", tmp_path / "latin.yaml")
    assert (ended.status, ended.out) == (2, "") and "UTF-8" in ended.err


def test_defaults_yaml_documents_every_key():
    known = {name: d for name, d in registry.load_all().items() if name in registry.DETECTORS}
    assert DEFAULTS.read_text() == config.document(known), "run `make defaults`"
    assert config.load([config.read_file(str(DEFAULTS))], known).model_dump() == config.load([], known).model_dump()


def test_check_prints_what_a_configuration_means(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("detectors: {flow: {idle: 90}}")
    assert run("check", path) == (0, "ok\n", "")
    assert "    idle: 90s\n" in run("check", path, "-v").out
    spec = "http://host/in?token=hush"
    for how in ("-v", "--json"):
        told = run("check", "--set", f"outputs=['{spec}']", how).out
        assert "http://host/in?***" in told and "hush" not in told
    assert '"idle": "90s"' in run("check", path, "--json").out
    assert run("check").status == 2


def test_only_the_named_detectors_run():
    known = registry.load_all()
    settings = config.load([config.only(["ptp", "flow"], known)], known)
    assert list(config.chosen(settings, known)) == ["ptp", "flow"]
    with pytest.raises(config.ConfigError, match="did you mean flow"):
        config.only(["flwo"], known)
