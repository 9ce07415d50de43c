"""Rates at run time: the file's, over them a table with a version and a lease, over that what mitigation paces.

Pure: `now` is an argument, ns of a clock that never runs backwards. Whatever is called returns what changes by it as a
list of Change, which the caller applies at one instant; what is refused changes nothing.
"""

from http import HTTPStatus
from typing import NamedTuple

from dataplane.records import NEVER
from qoetap.bitrates import LARGEST, parse_rate
from qoetap.keys import nearest_name

VERSION_MAX = 2**63 - 1
LEASE_MAX_s = 86_400.0
FILE, TABLE, MITIGATION = ("file", "table", "mitigation")  # where a class's rate is from
BY_TABLE, BY_ONE, BY_LEASE, BY_MITIGATION, BY_RELOAD = CAUSES = (  # of a change
    "table", "one", "lease_ended", "mitigation", "reload",
)  # fmt: skip
UNCHANGED = object()  # lease: as it is

_RATE = {
    "description": "bit/s, or text with a unit",
    "anyOf": [
        {"type": "number", "minimum": 1, "maximum": LARGEST},
        {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*(bit|kbit|Mbit|Gbit)?\s*$"},
    ],
}
_VERSION = {"type": "integer", "minimum": 1, "maximum": VERSION_MAX, "description": "above that of the table in force"}
_LEASE = {
    "type": ["number", "null"],
    "exclusiveMinimum": 0,
    "maximum": LEASE_MAX_s,
    "description": "seconds after which the file's rates count again; null: never; left out: inline.lease",
}
RATE_TABLE = {  # of PUT /v1/rates
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "rate table",
    "type": "object",
    "properties": {
        "version": _VERSION,
        "lease_s": _LEASE,
        "rates": {
            "type": "object",
            "additionalProperties": _RATE,
            "description": "rate by class; classes that are not named have the file's",
        },
    },
    "required": ["version", "rates"],
    "additionalProperties": False,
}
ONE_RATE = {  # of PUT /v1/classes/NAME/rate
    "$schema": RATE_TABLE["$schema"],
    "title": "rate of one class",
    "type": "object",
    "properties": {"rate": _RATE, "version": _VERSION, "lease_s": _LEASE},
    "required": ["rate"],
    "additionalProperties": False,
}


class Refused(Exception):
    """A request that changes nothing; str() is one sentence. `status` is that of HTTP, `more` further facts."""

    def __init__(self, status, sentence, **more):
        super().__init__(sentence)
        self.status, self.more = status, more


class Change(NamedTuple):
    """A class's rate before and after, bit/s; None: unpaced."""

    name: str
    old: int | None
    new: int | None


class Bound(NamedTuple):
    """What mitigation wants of a class."""

    rate: int  # bit/s
    at_most: bool  # a lower rate stays


class Table(NamedTuple):
    version: int
    lease_ns: int | object  # NEVER: none; UNCHANGED: not told
    rates: dict  # bit/s by class


# --- from JSON


def table_of(body):
    """Table of a decoded RATE_TABLE. Refused if it is none."""
    _keys(body, RATE_TABLE)
    if not isinstance(body["rates"], dict):
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "rates must be an object: rates by class")
    rates = {name: _rate(rate, name) for name, rate in body["rates"].items()}
    return Table(_version(body["version"]), _lease(body), rates)


def one_of(body, name):
    """Table of a decoded ONE_RATE of the class; its version may be None."""
    _keys(body, ONE_RATE)
    version = _version(body["version"]) if "version" in body else None
    return Table(version, _lease(body), {name: _rate(body["rate"], name)})


def _keys(body, schema):
    wrong = HTTPStatus.UNPROCESSABLE_ENTITY
    known = schema["properties"]
    if not isinstance(body, dict):
        raise Refused(wrong, f"the body must be an object with {', '.join(known)}")
    for key in schema["required"]:
        if key not in body:
            raise Refused(wrong, f"{key} is missing")
    for key in body:
        if key not in known:
            raise Refused(wrong, f"unknown key {key}{nearest_name(key, list(known))}")


def _rate(value, name):
    try:
        if not isinstance(value, (int, float, str)):
            raise ValueError("a rate is a number of bit/s or text such as 2Mbit")
        return parse_rate(value)
    except ValueError as error:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"rate of {name}: {error}") from None


def _version(value):
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    if not whole or not 1 <= value <= VERSION_MAX:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"version must be a whole number from 1 to {VERSION_MAX}")
    return int(value)


def _lease(body):
    value = body.get("lease_s", UNCHANGED)
    if value is None:
        return NEVER
    if value is UNCHANGED:
        return value
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= LEASE_MAX_s:
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"lease_s must be above 0 and at most {LEASE_MAX_s:.0f}, or null for none"
        )
    return int(value * 1e9)


# --- what is in force


class Rates:
    """The rates of all classes. file: {class: bit/s or None}; lease_ns: of tables that name none, 0: none."""

    def __init__(self, file, lease_ns=0):
        self.file, self.lease_ns = dict(file), lease_ns or NEVER
        self.version, self.table, self.ends = 0, {}, NEVER  # of the lease, ns
        self.bounds = {}

    def of(self, name):
        """Rate in force, bit/s; None: unpaced."""
        rate, bound = self.table.get(name, self.file[name]), self.bounds.get(name)
        if bound is None:
            return rate
        return bound.rate if rate is None or not bound.at_most else min(rate, bound.rate)

    def source(self, name):
        """Where it is from."""
        return MITIGATION if name in self.bounds else TABLE if name in self.table else FILE

    def replace(self, table, now):
        """Put a Table in the place of the one before. Refused as a whole if it is old or names an unknown class."""
        self._check(table, HTTPStatus.UNPROCESSABLE_ENTITY)
        if table.lease_ns is UNCHANGED:
            table = table._replace(lease_ns=self.lease_ns)
        return self._take(table, dict(table.rates), now)

    def set_one(self, one, now):
        """Change the table at hand, or begin one, as `one` says. Its lease stays unless `one` has another."""
        self._check(one, HTTPStatus.NOT_FOUND)
        if one.version is None:
            one = one._replace(version=self.version)
        if one.lease_ns is UNCHANGED:
            left = NEVER if self.ends == NEVER else self.ends - now
            one = one._replace(lease_ns=left if self.table else self.lease_ns)
        return self._take(one, self.table | one.rates, now)

    def expire(self, now):
        """Changes by the end of the lease; None: it has not ended now."""
        if now < self.ends:
            return None
        return self._take(Table(self.version, NEVER, {}), {}, now)

    def refile(self, file, lease_ns=0):
        """Go on with another file: changes of classes that both name. What is no class any more is in no table."""
        before = {name: self.of(name) for name in self.file if name in file}
        self.file, self.lease_ns = dict(file), lease_ns or NEVER
        self.table = {name: rate for name, rate in self.table.items() if name in file}
        self.bounds = {name: bound for name, bound in self.bounds.items() if name in file}
        return self._changes(before)

    def bound(self, bounds):
        """What mitigation paces from now on, instead of what it did: {class: Bound}."""
        before = {name: self.of(name) for name in self.bounds | bounds}
        self.bounds = dict(bounds)
        return self._changes(before)

    def told(self, now):
        """The table in force, as JSON has it."""
        left = None if self.ends == NEVER else max(0, self.ends - now) / 1e9
        return {"version": self.version, "lease_left_s": left, "rates": dict(self.table)}

    def _check(self, table, unknown):
        if table.version is not None and table.version <= self.version:
            sentence = f"version {table.version} is not above {self.version}, the latest"
            raise Refused(HTTPStatus.CONFLICT, sentence, version=self.version)
        for name in table.rates:
            if name not in self.file:
                sentence = f"there is no class {name!r} whose rate can be set{nearest_name(name, list(self.file))}"
                raise Refused(unknown, sentence)

    def _take(self, table, rates, now):
        before = {name: self.of(name) for name in self.table | rates}
        self.version, self.table = table.version, rates
        self.ends = NEVER if table.lease_ns == NEVER else now + table.lease_ns
        return self._changes(before)

    def _changes(self, before):
        after = ((name, old, self.of(name)) for name, old in before.items())
        return [Change(*change) for change in after if change[1] != change[2]]
