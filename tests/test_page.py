"""The operator's page as text: what each state shows, and that nobody's text becomes markup."""

import base64
import hashlib
import math
import re
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import charts, page
from tests.pages import HOSTILE, MODEL, NS, NOW_ns, Parsed, reading, samples, stale, totals

NOTHING_LOST = totals()


def shown(*readings, samples=MappingProxyType({}), models=MappingProxyType({}), totals=NOTHING_LOST, **view):
    return page.render(list(readings), samples, models, totals, NOW_ns, page.View(**view))


def parsed(*readings, **options):
    return Parsed(shown(*readings, **options))


@pytest.mark.parametrize(("load", "name"), [(0.1, "low"), (0.53, "normal"), (0.98, "congested")])
def test_a_fresh_path_shows_its_load_and_class(load, name):
    found = parsed(reading("north", load), reading("south", None, reason="no_model", model=None, w=None))
    (bar,) = found.all("div", role="meter")
    assert bar["aria-valuenow"] == f"{100 * load:.0f}"
    assert bar["class"] == f"meter {name}"
    assert found.all("rect", class_="value", width=str(100 * load))
    assert {"href": f"#{name}"} in found.all("use")
    assert f"{name} {100 * load:.0f} %" in found.text


def test_the_interval_of_the_load_is_drawn_and_told():
    found = parsed(reading("north", 0.5, wide=0.1))
    assert found.all("path", class_="interval", d="M40.0 3.5V10.5M40.0 7H60.0M60.0 3.5V10.5")
    assert "40 to 60 %" in found.text
    assert found.all("div", role="meter")[0]["aria-valuetext"] == "50 %, between 40 and 60 %"


def test_a_stale_path_shows_no_load():
    found = parsed(stale(), reading("south"))
    assert len(found.all("div", role="meter")) == 1
    assert "unknown stale – load is not known" in found.text
    assert "1 min" in found.text


def test_a_path_without_a_model_says_how_to_set_one():
    found = parsed(reading("north", None, model=None, w=None, reason="no_model"), host="collector:9470")
    assert "no model" in found.text
    assert 'curl -T model.json -H "Content-Type: application/json" http://collector:9470/v1/models/north' in found.text


def test_the_model_is_named():
    default = reading("north", model={**reading()["model"], "version": 0})
    assert "version 3, exponential" in parsed(reading("north")).text
    assert "the default, exponential" in parsed(default).text


def test_a_path_without_samples_is_shown():
    empty = reading("north", None, reason="no_samples", delay_ns=None, last_ns=None, age_s=None, samples=0)
    assert "no sample yet" in parsed(empty, models={"north": MODEL}).text


def test_without_paths_the_page_says_which_command_sends_events():
    found = parsed(host="collector:9470")
    assert "qoetap live -i eth0 --detectors ptp -o http://collector:9470/v1/events" in found.text
    assert not found.all("table", class_="paths")


def test_congested_and_unknown_paths_stand_first():
    text = parsed(reading("a"), stale("b"), reading("c", 0.99), reading("d", 0.1)).text
    assert [text.index(f"{name} tap-1") for name in "cbad"] == sorted(text.index(f"{name} tap-1") for name in "cbad")


def test_a_long_list_is_cut_with_the_worst_first():
    found = parsed(*(reading(f"p{i:04}") for i in range(1000)), reading("zz", 0.99))
    assert len(found.all("tr", role="row")) == 1 + page.ROWS_MAX
    assert "200 of 1,001 paths" in found.text
    assert "zz" in found.text


def test_the_only_path_is_shown_in_detail():
    assert parsed(reading("north")).all("section", id="detail")
    assert not parsed(reading("north"), reading("south")).all("section", id="detail")
    assert parsed(reading("north"), reading("south"), path="south").all("section", id="detail")


def test_a_path_that_is_none_is_said():
    assert "There is no path west" in parsed(reading("north"), path="west").text


def test_drops_are_shown_by_reason():
    text = parsed(totals=totals(rejected={"bad_json": 4, "negative_delay": 1200})).text
    assert "dropped: bad_json 4 dropped: negative_delay 1,200" in text


def test_choices_of_data_centres_are_shown():
    choice = {
        "aggregation": "ap-1", "content": "page", "data_centre": "east", "expected_s": 0.412, "class": "normal",
        "reason": "best",
    }  # fmt: skip
    assert "ap-1 page east it is expected to be the fastest normal 0.41 s" in parsed(reading(), choices=[choice]).text


def test_the_detail_draws_samples_and_model():
    found = parsed(reading("north"), samples={"north": samples(100)}, models={"north": MODEL})
    assert len(found.all("circle", class_="dot")) == 100
    assert len(found.all("circle", class_="median")) == len(MODEL["levels"])
    assert len(found.all("circle", class_="now")) == 1
    assert {image["role"] for image in found.all("svg", class_="chart")} == {"img"}


def names(text):
    """A page in which every text that comes from outside is `text`."""
    choice = dict.fromkeys(("aggregation", "content", "data_centre", "class", "reason"), text) | {"expected_s": 1.0}
    one = reading(text, **dict.fromkeys(("agent_id", "master_clock"), text))
    view = {"path": text, "host": text, "choices": [choice]}
    return shown(one, samples={text: samples()}, models={text: MODEL}, totals=totals(rejected={text: 1}), **view)


def markup(text):
    """The tags of a page and the names of their attributes."""
    return [(tag, sorted(attrs)) for tag, attrs in Parsed(text).tags]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_is_never_markup(text):
    assert markup(names(text)) == markup(names("harmless"))
    assert text in Parsed(names(text)).text


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_no_text_changes_the_markup(text):
    assert markup(names(text)) == markup(names("harmless"))


def test_text_that_cannot_be_seen_or_sent_is_replaced():
    text = shown(reading("a\u202eb\x00c\ud800", agent_id="\x1b[2J"))
    assert "a\ufffdb\ufffdc\ufffd" in text
    assert "\x1b" not in text
    text.encode()


def test_long_names_are_cut_but_their_links_are_whole():
    found = parsed(reading("p" * 500), reading("q"))
    assert "p" * 127 + "…" in found.text
    assert "p" * 128 not in found.text
    assert found.all("a", href=f"?path={'p' * 500}#detail")


def test_the_policy_allows_this_page_and_nothing_else():
    text = shown(reading())
    for tag in ("script", "style"):
        (source,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.policy()
    assert "default-src 'none'" in page.policy()
    assert "unsafe" not in page.policy()


def test_the_page_asks_no_other_host():
    found = parsed(reading("north"), samples={"north": samples()}, models={"north": MODEL})
    addresses = [have[key] for _, have in found.tags for key in ("src", "href") if key in have]
    assert [address for address in addresses if "//" in address and not address.startswith("data:")] == []
    assert not [have for _, have in found.tags if "style" in have]
    assert "http" not in page.TEMPLATES.joinpath("page.css").read_text()


def test_it_works_without_script():
    (noscript,) = re.findall("<noscript>(.*?)</noscript>", shown(reading()))
    assert Parsed(noscript).all("meta", http_equiv="refresh", content="5")


def test_every_header_and_picture_has_a_name():
    found = parsed(reading(), stale("south"), path="north", samples={"north": samples()}, models={"north": MODEL})
    assert all(have.get("scope") for have in found.all("th"))
    assert all("aria-hidden" in have or have.get("aria-label") for have in found.all("svg"))
    ids = [have["id"] for _, have in found.tags if "id" in have]
    assert len(ids) == len(set(ids))


def luminance(colour):
    """Relative luminance of #rrggbb (WCAG 2.1)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(theme):
    """4.5 to 1 for text (WCAG 2.1, 1.4.3), 3 to 1 for what is drawn (1.4.11)."""
    css = page.TEMPLATES.joinpath("page.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#\w{6})", css.split("@media")[theme]))
    for ground in ("card", "ground", "track"):
        for name in ("ink", "soft", *page.CLASSES):
            light, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
            least = 3 if ground == "track" and name != "ink" else 4.5
            assert (light + 0.05) / (dark + 0.05) >= least, f"{name} on {ground}"


@pytest.mark.parametrize(
    ("delay_ns", "text"),
    [(0, "0 ns"), (950, "950 ns"), (36_100, "36.1 µs"), (99_960, "100 µs"), (2_804_254, "2.80 ms"), (1.5e9, "1.50 s"),
     (-2000, "-2.00 µs")],
)  # fmt: skip
def test_delays_are_written_with_three_digits(delay_ns, text):
    assert page.delay_text(delay_ns) == text


@pytest.mark.parametrize(("age_s", "text"), [(0.4, "0 s"), (59, "59 s"), (150, "2 min"), (7200, "2 h"), (1e6, "11 d")])
def test_ages_are_written_in_one_unit(age_s, text):
    assert page.age_text(age_s) == text


def test_a_delay_axis_marks_round_values_within_it():
    up = charts.delay_scale([36_100, 13_271_748], 200, 10)
    ticks = charts.delay_ticks(up)
    assert ticks == [1e5, 1e6, 1e7]
    assert charts.delay_ticks(charts.delay_scale([100_000, 101_000], 200, 10)) == [1e5, 2e5][: len(ticks)]
    assert [up.at(y) for y in ticks] == sorted((up.at(y) for y in ticks), reverse=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(-(2**62), 2**62)), max_size=20), st.integers(0, 2**62))
def test_any_samples_stay_within_the_chart(found, now_ns):
    found.sort()
    chart = charts.history(found, None, reading("north", None, model=None), now_ns)
    assert (chart is None) == (not found)
    for x, y in chart["dots"] if chart else ():
        assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
        assert charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM
    charts.spark(found)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**62), st.integers(1, 400 * 86400))
def test_a_time_axis_has_a_few_marks(since_ns, seconds):
    ticks = charts.time_ticks(since_ns, since_ns + seconds * NS)
    assert len(ticks) <= charts.TIME_TICKS + 1
    assert all(since_ns <= ts <= since_ns + seconds * NS for ts, _ in ticks)
    assert seconds < 5 or ticks


def test_a_line_is_interrupted_where_samples_lack():
    line = [(0, 1), (4 * NS, 1), (17 * NS, 1), (21 * NS, 1)]
    assert charts.runs(line, 4.0) == [line[:2], line[2:]]
    assert charts.runs(line, 5.0) == [line]


def test_levels_without_delay_stand_at_the_foot_of_the_chart():
    chart = charts.fit([(0.0, 0.0)], lambda load: 1e6 * (1 + load), reading("north", 0.5))
    assert chart["levels"] == [(charts.LEFT, charts.HEIGHT - charts.BOTTOM)]


def test_the_curve_of_the_fit_goes_through_the_models_delays():
    def curve(load):
        return MODEL["a_ns"] * math.exp(MODEL["b"] * load)

    chart = charts.fit([(0.5, curve(0.5))], curve, reading("north", 0.5))
    assert chart["now"]["x"] == chart["levels"][0][0] == pytest.approx((charts.LEFT + charts.WIDTH - charts.RIGHT) / 2)
    assert chart["now"]["y"] == pytest.approx(chart["levels"][0][1], abs=0.2)
    points = [tuple(map(float, point.split())) for point in chart["curve"][1:].split("L")]
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
