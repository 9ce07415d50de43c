"""`qoetap load learn`: files it takes and refuses, what it prints, writes and draws."""

import csv
import json

import numpy as np
import pytest

from controlplane import load
from qoetap.exits import DONE, INPUT, RUN_ERROR, USAGE
from tests.helpers import run
from tests.load_samples import PAPER_LEVELS, B, published, random_steps, steps

GOOD = '{"ts_ns": 1, "delay_ns": 50000, "load": 0.1}\n'


def rows_of(samples, **more):
    return [{"ts_ns": int(ts), "delay_ns": int(delay), "load": float(at), **more} for delay, at, ts in zip(*samples)]


@pytest.fixture(scope="module")
def rows():
    return rows_of(steps(published, np.random.default_rng(1), PAPER_LEVELS, 60))


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def file(tmp_path, rows):
    path = tmp_path / "samples.jsonl"
    path.write_text(as_lines(rows))
    return path


def test_a_model_a_picture_and_a_table(file, tmp_path):
    model, picture = tmp_path / "model.json", tmp_path / "fit.png"
    done = run("load", "learn", file, "-o", model, "--plot", picture)
    assert done.status == DONE
    learned = load.from_document(json.loads(model.read_text()))
    assert learned.b == pytest.approx(B, rel=0.1) and learned.made == "qoetap load learn samples.jsonl"
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = done.out.splitlines()
    assert lines[0].split() == ["load", "samples", "median", "us", "fitted", "us", "class"]
    assert [line.split()[0] for line in lines[1:13]] == [f"{at:.3f}" for at in PAPER_LEVELS]
    assert lines[12].split()[1] == "60" and lines[12].endswith("congested  not in the fit")
    assert "congested  0.950" in lines and any(line.startswith("left-out levels") for line in lines)
    assert done.err == f"qoetap: the model is in {model}\n"


def test_json_holds_the_same(file):
    found = json.loads(run("load", "learn", file, "--json", "--kind", "monotone").out)
    assert found["model"]["kind"] == "monotone" and len(found["levels"]) == len(PAPER_LEVELS)
    assert set(found["cross_validation"]) == {"exponential", "isotonic", "pchip"}
    assert load.from_document(found["model"]).curve.shape in ("isotonic", "pchip")
    assert found["levels"][0]["samples"] == 60 and set(found["rmse"]) == {"all", "low", "normal", "congested"}


def test_csv_says_the_same_as_json_lines(file, rows, tmp_path):
    table = tmp_path / "samples.csv"
    with table.open("w", newline="") as out:
        writer = csv.DictWriter(out, ["load", "delay_ns", "ts_ns"])
        writer.writeheader()
        writer.writerows(rows)
    assert run("load", "learn", table).out == run("load", "learn", file).out


def test_samples_from_stdin(rows, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(as_lines(rows)))
    assert run("load", "learn", "-").status == DONE


def learned(*words):
    return json.loads(run("load", "learn", *words, "--json").out)["model"]


def test_smoothing_is_chosen_on_the_trace(file, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text(as_lines(rows_of(random_steps(published, np.random.default_rng(2), 600, 2))))
    model = learned(file, "--trace", trace, "--held", 999)
    assert model["w"] < 0.2 and model["filter"]["samples"] == 1


def test_smoothing_without_a_trace_is_for_loads_that_stay(file):
    """For 4 s or 240 s, at a sample every 4 s."""
    short, long = (learned(file, "--held", held) for held in (4, 240))
    assert short["w"] < 0.1 and short["filter"]["samples"] == 1
    assert long["w"] > short["w"] or long["filter"]["samples"] > 1


def test_without_times_it_says_what_was_taken_unseen(rows, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(as_lines({key: row[key] for key in ("delay_ns", "load")} for row in rows))
    done = run("load", "learn", path)
    assert done.status == DONE and "w          0.87" in done.out
    assert "w 0.87 and no filter are taken unseen" in done.err


def test_levels_with_few_samples_are_left_out_and_counted(rows, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(as_lines([*rows, *({**rows[0], "load": 0.44} for _ in range(3))]))
    done = run("load", "learn", path)
    assert "0.440" not in done.out and "3 samples are at loads with too few" in done.err


def test_it_says_that_no_level_jumped(rows, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(as_lines(row for row in rows if row["load"] < 0.95))
    assert "congested  0.950, half way to full load, as no level's delay jumps" in run("load", "learn", path).out


def test_one_path_of_several(rows, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(as_lines([*({**row, "path": "a"} for row in rows), {**rows[0], "path": "b"}]))
    refused = run("load", "learn", path)
    assert refused.status == USAGE and "choose one with --path, such as a" in refused.err
    assert run("load", "learn", path, "--path", "a").status == DONE
    missing = run("load", "learn", path, "--path", "c")
    assert missing.status == INPUT and "no samples in it of the path c" in missing.err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1: JSON lines or a CSV header with delay_ns and load is needed"),
        ("ts_ns,load\n1,2\n", "line 1: JSON lines or a CSV header"),
        ("\x00\x01", "line 1: JSON lines or a CSV header"),
        pytest.param("[" * 140_000, "line 1: JSON lines or a CSV header", id="a JSON array is one long line"),
        ("delay_ns,load\n", "there are no samples in it"),
        ("delay_ns,load\n5,0.1\n5\n", "line 3: there is no load"),
        ("delay_ns,load\n5,0.1\n\n5,high\n", "line 4: load is no number"),
        ("delay_ns,load,ts_ns\n5,0.1,1.5\n", "line 2: ts_ns is no whole number of ns"),
        (GOOD + "{not json}\n", "line 2: this is no JSON"),
        (GOOD + "[1]\n", "line 2: this is no JSON object"),
        (GOOD + '{"ts_ns": 1, "load": 0.1}\n', "line 2: there is no delay_ns"),
        (GOOD + '{"ts_ns": 1, "delay_ns": null, "load": 0.1}\n', "line 2: delay_ns is no number"),
        (GOOD + '{"ts_ns": 1, "delay_ns": true, "load": 0.1}\n', "line 2: delay_ns is no number"),
        (GOOD + '{"delay_ns": 1, "load": 0.1}\n', "line 2: there is no ts_ns"),
        (GOOD + '{"ts_ns": 1e99, "delay_ns": 1, "load": 0.1}\n', "line 2: ts_ns is no whole number of ns"),
        (GOOD + '{"ts_ns": 1, "delay_ns": -7, "load": 0.1}\n', "line 2: the delay is negative: -7"),
        (GOOD + '\n{"ts_ns": 1, "delay_ns": NaN, "load": 0.1}\n', "line 3: the delay is no finite number"),
        (GOOD + '{"ts_ns": 1, "delay_ns": 7, "load": 1.5}\n', "line 2: the load is not in 0 to 1: 1.5"),
        (GOOD + '{"ts_ns": 1, "delay_ns": 1' + "0" * 400 + ', "load": 1}\n', "line 2: delay_ns is no number"),
    ],
)
def test_files_that_are_refused(text, sentence, tmp_path):
    path = tmp_path / "x"
    path.write_text(text)
    done = run("load", "learn", path)
    assert (done.status, done.out) == (INPUT, "")
    assert done.err.startswith(f"qoetap: {path}") and sentence in done.err and done.err.count("\n") == 1


def test_files_that_cannot_be_read(tmp_path):
    assert run("load", "learn", tmp_path / "none").status == INPUT
    binary = tmp_path / "x"
    binary.write_bytes(b"\xff\xfe{")
    done = run("load", "learn", binary)
    assert done.status == INPUT and "this is no text" in done.err


def test_too_few_levels(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD * 10)
    done = run("load", "learn", path)
    assert done.status == RUN_ERROR
    assert done.err == (f"qoetap: {path}: a fit needs 4 levels of load with 5 samples or more, but there are 1\n")


def test_options_that_are_refused(file, tmp_path, rows):
    assert "learn needs a labelled file" in run("load", "learn").err
    assert run("load", "learn", file, "--plot", tmp_path / "fit.txt").status == USAGE
    assert run("load", "learn", file, "-o", tmp_path / "none" / "model.json").status == USAGE
    assert run("load", "learn", file, "--kind", "linear").status == USAGE
    assert "--seed is for calibrate" in run("load", "learn", file, "--seed", 0).err
    assert "--held 0: choose more than 0" in run("load", "learn", file, "--held", 0).err
    assert run("load", "learn", file, "--held", "nan").status == USAGE
    timeless = tmp_path / "x.csv"
    timeless.write_text("delay_ns,load\n5,0.1\n")
    done = run("load", "learn", file, "--trace", timeless)
    assert done.status == INPUT and "a trace needs ts_ns" in done.err


@pytest.mark.parametrize("kind", ["exponential", "monotone"])
def test_pictures_of_either_kind(file, tmp_path, kind):
    picture = tmp_path / "fit.svg"
    assert run("load", "learn", file, "--kind", kind, "--plot", picture).status == DONE
    assert "<svg" in picture.read_text()
