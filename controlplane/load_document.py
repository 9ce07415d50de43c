"""A load model as a JSON document and back. Whatever a document holds, it becomes a Model or one clear sentence."""

import math
from dataclasses import asdict

from controlplane.load_model import (
    KINDS,
    MONOTONE,
    SHAPES,
    Curve,
    HISTORY_samples,
    Level,
    Model,
    Spread,
)  # fmt: skip

FORMAT, VERSION = "qoetap-load-model", 1
LEVELS_MAX, MADE_MAX = 256, 1000
DELAY_LIMIT_ns = 1e18
INTERVAL_MAX_seconds = 86400.0


def to_document(model):
    """The model as a dict that json.dumps takes."""
    document = {"format": FORMAT, "version": VERSION, **asdict(model)}
    document["filter"] = {"percentile": document.pop("percentile"), "samples": document.pop("samples")}
    document["levels"] = [asdict(level) for level in model.levels]
    for name in ("curve", "spread"):
        if document[name] is not None:
            document[name] = {key: list(v) if isinstance(v, tuple) else v for key, v in document[name].items()}
    return document


def from_document(document):
    """The Model of a document. ValueError: one sentence that names what is wrong with it."""
    _check_head(document)
    reader = Reader(document, "the model")
    model = Model(
        kind=reader.choice("kind", KINDS),
        a_ns=reader.number("a_ns", 1e-9, DELAY_LIMIT_ns),
        b=reader.number("b", 1e-9, 1000.0),
        low=reader.number("low", 0.0, 1.0),
        congested=reader.number("congested", 0.0, 1.0),
        congestion_found=reader.boolean("congestion_found", Model.congestion_found),
        r2=reader.optional_number("r2", -math.inf, 1.0),
        w=reader.number("w", 0.0, 0.9999, Model.w),
        interval_s=reader.number("interval_s", 1e-3, INTERVAL_MAX_seconds, Model.interval_s),
        curve=_curve(reader.part("curve")),
        spread=_spread(reader.part("spread")),
        levels=_levels(reader.take("levels", [])),
        made=reader.text("made", MADE_MAX),
        **_filter(reader.part("filter")),
    )
    reader.end("format", "version")
    _check_whole(model)
    return model


def _check_head(document):
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f'this is no load model: its "format" is not "{FORMAT}"')
    if document.get("version") != VERSION or isinstance(document.get("version"), bool):
        raise ValueError(f"the model is of version {document.get('version')!r}, but qoetap reads version {VERSION}")


def _check_whole(model):
    if model.low >= model.congested:
        raise ValueError(f"the model's low {model.low:g} is not below its congested {model.congested:g}")
    if math.log(model.a_ns) + model.b > math.log(DELAY_LIMIT_ns):
        raise ValueError(f"the model's a_ns {model.a_ns:g} and b {model.b:g} lead to absurd delays at full load")
    if model.kind == MONOTONE and model.curve is None:
        raise ValueError('the model is of kind "monotone", but has no curve')


def _filter(reader):
    if reader is None:
        return {}
    found = {
        "percentile": reader.number("percentile", 0.0, 100.0),
        "samples": reader.whole("samples", 1, HISTORY_samples),
    }
    reader.end()
    return found


def _curve(reader):
    if reader is None:
        return None
    curve = Curve(
        reader.choice("shape", SHAPES),
        reader.numbers("load", 0.0, 1.0),
        reader.numbers("delay_ns", 1.0, DELAY_LIMIT_ns),
    )
    reader.end()
    for name, values in (("load", curve.load), ("delay_ns", [*map(math.log, curve.delay_ns)])):  # it is told in ln
        if any(b <= a for a, b in zip(values, values[1:], strict=False)):
            raise ValueError(f"the model's curve.{name} does not rise from knot to knot")
    _check_lengths("curve", curve.load, curve.delay_ns)
    return curve


def _spread(reader):
    if reader is None:
        return None
    columns = [reader.numbers(name, 0.0, 1.0) for name in ("load", "mean", "low", "high")]
    spread = Spread(*columns, reader.number("persistence", 0.0, 1.0, 0.0), reader.number("margin", 0.0, 1.0, 0.0))
    reader.end()
    _check_lengths("spread", *columns)
    if any(b <= a for a, b in zip(spread.load, spread.load[1:], strict=False)):
        raise ValueError("the model's spread.load does not rise from level to level")
    if not all(a <= b <= c for a, b, c in zip(spread.low, spread.mean, spread.high, strict=True)):
        raise ValueError("the model's spread has a mean outside low and high")
    return spread


def _check_lengths(name, *columns):
    if len({len(column) for column in columns}) != 1 or len(columns[0]) < 2:
        raise ValueError(f"the lists of the model's {name} must be of one length, 2 at least")


def _levels(items):
    if not isinstance(items, (list, tuple)) or len(items) > LEVELS_MAX:
        raise ValueError(f"the model's levels must be a list of at most {LEVELS_MAX}")
    return tuple(_level(item, at) for at, item in enumerate(items))


def _level(item, at):
    reader = Reader(item, f"the model's levels[{at}]")
    level = Level(
        reader.number("load", 0.0, 1.0),
        reader.whole("samples", 1, 10**12),
        reader.number("delay_ns", 0.0, DELAY_LIMIT_ns),
    )
    reader.end()
    return level


class Reader:
    """Takes the fields of a JSON object one by one; ValueError with a sentence that begins with `what`."""

    def __init__(self, values, what):
        if not isinstance(values, dict):
            raise ValueError(f"{what} must be an object")
        self.left, self.what = dict(values), what

    def take(self, name, *default):
        if name not in self.left and not default:
            raise ValueError(f"{self.what} has no {name}")
        return self.left.pop(name, *default)

    def end(self, *known):
        """No field is left but the known ones."""
        unknown = sorted(map(str, set(self.left) - set(known)))
        if unknown:
            raise ValueError(f"{self.what} has the unknown field {unknown[0]!r}")

    def part(self, name):
        value = self.take(name, None)
        return None if value is None else Reader(value, f"{self.what}'s {name}")

    def number(self, name, least, most, *default):
        return self._number(self.take(name, *default), name, least, most)

    def optional_number(self, name, least, most):
        value = self.take(name, None)
        return value if value is None else self._number(value, name, least, most)

    def numbers(self, name, least, most):
        values = self.take(name)
        if not isinstance(values, (list, tuple)) or len(values) > LEVELS_MAX:
            raise ValueError(f"{self.what}: {name} must be a list of at most {LEVELS_MAX} numbers")
        return tuple(self._number(value, f"{name}[{at}]", least, most) for at, value in enumerate(values))

    def whole(self, name, least, most):
        value = self.take(name)
        if not isinstance(value, int):
            raise ValueError(f"{self.what}: {name} must be a whole number")
        return int(self._number(value, name, least, most))

    def choice(self, name, choices):
        value = self.take(name)
        if value not in choices:
            raise ValueError(f"{self.what}: {name} must be {' or '.join(choices)}")
        return value

    def boolean(self, name, default):
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.what}: {name} must be true or false")
        return value

    def text(self, name, most):
        value = self.take(name, "")
        if not isinstance(value, str) or len(value) > most:
            raise ValueError(f"{self.what}: {name} must be text of at most {most} characters")
        return value

    def _number(self, value, name, least, most):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{self.what}: {name} must be a number")
        try:
            number = float(value)
        except OverflowError:  # a whole number of JSON may have any number of digits
            number = math.inf
        if not (least <= number <= most and math.isfinite(number)):
            raise ValueError(f"{self.what}: {name} must lie in {least:g} to {most:g}")
        return number
