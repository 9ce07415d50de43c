"""Rates at run time: versions, leases, what is refused as a whole, and what changes by each call."""

import math

import jsonschema
import pytest

from dataplane.records import NEVER
from qoetap.bitrates import LARGEST, parse_rate, rate_text
from qoetap.rates import (
    ONE_RATE,
    RATE_TABLE,
    UNCHANGED,
    Bound,
    Change,
    Rates,
    Refused,
    Table,
    one_of,
    table_of,
)

SECOND = 10**9
FILE = {"web": 1000, "bulk": 2000, "free": None}


def table(version, lease_s=None, **rates):
    return Table(version, UNCHANGED if lease_s is None else int(lease_s * SECOND), rates)


def refused(call):
    with pytest.raises(Refused) as told:
        call()
    assert "\n" not in str(told.value)
    return told.value


@pytest.mark.parametrize(
    ("text", "rate"),
    [("2Mbit", 2 * 10**6), ("1.5Gbit", 15 * 10**8), ("500kbit", 500_000), ("7", 7), (" 8 bit ", 8), (64000, 64000)]
    + [(1e6, 10**6), ("0.001kbit", 1), (LARGEST, LARGEST)],
)
def test_rates_are_read_exactly(text, rate):
    assert parse_rate(text) == rate == parse_rate(rate_text(rate))


@pytest.mark.parametrize(
    "text",
    [0, -1, "0", "0.5", "-2Mbit", "2Mbps", "2mbit", "", None, True, "x", "٣", math.inf, math.nan, LARGEST + 1, []],
)
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(ValueError, match="rate"):
        parse_rate(text)


def test_a_table_takes_the_place_of_the_one_before():
    rates = Rates(FILE)
    assert rates.replace(table(1, web=10, free=30), 0) == [Change("web", 1000, 10), Change("free", None, 30)]
    assert rates.replace(table(2, web=10, bulk=5), 0) == [Change("free", 30, None), Change("bulk", 2000, 5)]
    assert [rates.of(name) for name in FILE] == [10, 5, None]
    assert [rates.source(name) for name in FILE] == ["table", "table", "file"]
    assert rates.replace(table(3), 0) == [Change("web", 10, 1000), Change("bulk", 5, 2000)]


@pytest.mark.parametrize("version", [1, 4, 5])
def test_an_old_version_changes_nothing(version):
    rates = Rates(FILE)
    rates.replace(table(5, web=10), 0)
    error = refused(lambda: rates.replace(table(version, web=11), 1))
    assert error.status == 409 and error.more == {"version": 5} and rates.of("web") == 10
    assert refused(lambda: rates.set_one(Table(version, UNCHANGED, {"web": 1}), 1)).status == 409


def test_an_unknown_class_refuses_the_whole_table():
    rates = Rates(FILE)
    error = refused(lambda: rates.replace(table(1, web=10, blk=3), 0))
    assert error.status == 422 and "'blk'" in str(error) and "did you mean bulk?" in str(error)
    assert rates.of("web") == 1000 and rates.version == 0
    assert refused(lambda: rates.replace(table(1, default=3), 0)).status == 422
    assert refused(lambda: rates.set_one(Table(None, UNCHANGED, {"wbe": 1}), 0)).status == 404


def test_when_the_lease_is_over_the_files_rates_count():
    rates = Rates(FILE, 30 * SECOND)
    rates.replace(table(1, web=10), 0)
    assert rates.expire(30 * SECOND - 1) is None
    assert rates.told(29 * SECOND) == {"version": 1, "lease_left_s": 1.0, "rates": {"web": 10}}
    assert rates.expire(30 * SECOND) == [Change("web", 10, 1000)]
    assert rates.expire(31 * SECOND) is None and rates.told(0)["lease_left_s"] is None
    assert refused(lambda: rates.replace(table(1, web=10), 0)).status == 409, "versions go on"


def test_a_lease_is_renewed_by_the_next_table():
    rates = Rates(FILE)
    rates.replace(table(1, 2, web=10), 0)
    assert rates.replace(table(2, 2, web=10), SECOND) == []
    assert rates.expire(2 * SECOND) is None and rates.expire(3 * SECOND) == [Change("web", 10, 1000)]
    rates.replace(Table(3, NEVER, {"web": 10}), 0)
    assert rates.expire(10**18) is None


def test_one_rate_changes_the_table_at_hand():
    rates = Rates(FILE, 30 * SECOND)
    rates.replace(table(7, 10, web=10), 0)
    assert rates.set_one(Table(None, UNCHANGED, {"bulk": 20}), 4 * SECOND) == [Change("bulk", 2000, 20)]
    assert rates.told(4 * SECOND) == {"version": 7, "lease_left_s": 6.0, "rates": {"web": 10, "bulk": 20}}
    rates.set_one(Table(9, 5 * SECOND, {"bulk": 21}), 4 * SECOND)
    assert rates.told(4 * SECOND)["lease_left_s"] == 5.0 and rates.version == 9


def test_one_rate_alone_has_the_default_lease():
    rates = Rates(FILE, 30 * SECOND)
    rates.set_one(Table(None, UNCHANGED, {"web": 20}), 0)
    assert rates.version == 0 and rates.expire(30 * SECOND) == [Change("web", 20, 1000)]


def test_what_mitigation_paces_goes_over_the_table():
    rates = Rates(FILE)
    assert rates.bound({"bulk": Bound(500, True), "free": Bound(9, True)}) == [
        Change("bulk", 2000, 500),
        Change("free", None, 9),
    ]
    assert rates.source("bulk") == "mitigation"
    assert rates.replace(table(1, bulk=400, web=1), 0) == [Change("bulk", 500, 400), Change("web", 1000, 1)]
    assert rates.bound({"web": Bound(5000, False)}) == [Change("free", 9, None), Change("web", 1, 5000)]
    assert rates.bound({}) == [Change("web", 5000, 1)]


def test_another_file_changes_what_no_table_and_no_bound_says():
    rates = Rates(FILE, 30 * SECOND)
    rates.replace(table(3, web=10, free=20), 0)
    rates.bound({"bulk": Bound(500, True)})
    changed = rates.refile({"web": 1, "bulk": 400, "new": 7}, 5 * SECOND)
    assert changed == [Change("bulk", 500, 400)]
    assert (rates.of("web"), rates.of("new"), rates.told(0)["rates"]) == (10, 7, {"web": 10})
    assert rates.expire(30 * SECOND) == [Change("web", 10, 1)]
    assert "'free'" in str(refused(lambda: rates.replace(table(4, free=1), 0)))
    rates.replace(table(4), 0)
    assert rates.told(0)["lease_left_s"] == 5.0


GOOD = [
    {"version": 1, "rates": {}},
    {"version": 2**63 - 1, "lease_s": None, "rates": {"web": "2Mbit", "bulk": 1}},
    {"version": 3, "lease_s": 0.5, "rates": {"web": 2.5e6}},
    {"version": 4.0, "rates": {"web": LARGEST}},
]
BAD = [
    [],
    {},
    {"version": 1},
    {"version": 0, "rates": {}},
    {"version": True, "rates": {}},
    {"version": 1.5, "rates": {}},
    {"version": "1", "rates": {}},
    {"version": 2**63, "rates": {}},
    {"version": 1, "rates": []},
    {"version": 1, "rates": {"web": 0}},
    {"version": 1, "rates": {"web": -5}},
    {"version": 1, "rates": {"web": None}},
    {"version": 1, "rates": {"web": True}},
    {"version": 1, "rates": {"web": "2Mbps"}},
    {"version": 1, "rates": {"web": LARGEST + 1}},
    {"version": 1, "rates": {}, "lease": 3},
    {"version": 1, "rates": {}, "lease_s": 0},
    {"version": 1, "rates": {}, "lease_s": "3"},
    {"version": 1, "rates": {}, "lease_s": 1e9},
]


@pytest.mark.parametrize("body", GOOD)
def test_tables_that_fit_the_schema_are_taken(body):
    jsonschema.Draft202012Validator.check_schema(RATE_TABLE)
    jsonschema.validate(body, RATE_TABLE)
    found = table_of(body)
    assert found.version == body["version"] and found.rates.keys() == body["rates"].keys()
    assert all(isinstance(rate, int) and rate > 0 for rate in found.rates.values())


@pytest.mark.parametrize("body", BAD)
def test_tables_that_do_not_are_refused(body):
    assert not jsonschema.Draft202012Validator(RATE_TABLE).is_valid(body)
    assert refused(lambda: table_of(body)).status == 422


def test_leases():
    assert table_of(GOOD[0]).lease_ns is UNCHANGED
    assert table_of(GOOD[1]).lease_ns == NEVER
    assert table_of(GOOD[2]).lease_ns == SECOND // 2
    assert refused(lambda: table_of({"version": 1, "rates": {}, "lease_s": math.nan})).status == 422


def test_one_rate_as_json():
    jsonschema.Draft202012Validator.check_schema(ONE_RATE)
    assert one_of({"rate": "2Mbit"}, "web") == Table(None, UNCHANGED, {"web": 2 * 10**6})
    assert one_of({"rate": 5, "version": 3, "lease_s": 1}, "web") == Table(3, SECOND, {"web": 5})
    assert "rate of web" in str(refused(lambda: one_of({"rate": 0}, "web")))
    assert "did you mean rate?" in str(refused(lambda: one_of({"rate": 1, "rates": 1}, "web")))
