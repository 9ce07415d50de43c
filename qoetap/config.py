"""The configuration: its keys, how a file and the command line become one, and what is wrong with it in one sentence.

Layers are dicts of the same shape as the file; a later one wins. Keys of a detector are made from its options, so that
adding an option to a detector is all there is to do.
"""

import hashlib
import os
import re
from typing import Annotated, Literal, NamedTuple, get_args, get_origin

import numpy as np
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, create_model

from dataplane.capture.bpf import check_expression
from dataplane.capture.source import CaptureError
from dataplane.records import rows
from dataplane.sinks.names import redacted
from dataplane.wire import TUNNELS
from detectors.base import CHOICE, COUNT, DURATION, FLAG, NUMBER
from qoetap import classes, serve_keys
from qoetap.durations import duration_text, parse_duration
from qoetap.inline_keys import INLINE, inline_values, lists_help
from qoetap.keys import ConfigError, Duration, Section, Size, fields_of, nearest
from qoetap.redirect_check import check_redirection
from qoetap.serve_keys import DNS, SERVE
from qoetap.sizes import parse_size, size_text

FIELD_TYPES = {DURATION: "i8", COUNT: "i8", FLAG: "u1", CHOICE: "i8", NUMBER: "f8"}
COUNT_MAX = 2**63 - 1
CAPACITY_MAX = 1 << 28
WORKERS_MAX = 64
SECRET_BYTES = 16
SHAPES = {  # pydantic's name of an error: what should have been there
    "model_type": "must hold keys and values",
    "list_type": "must be a list",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_pattern_mismatch": "must be 1 to 64 of a-z, 0-9, _ . and -",
    "model_attributes_type": "must hold keys and values",
}


class Layer(NamedTuple):
    """Part of a configuration and where it is from."""

    origin: str  # a file or an option
    values: dict


def _retire_time(ns):
    if not 10**6 <= ns <= 10**8:
        raise ValueError("must be from 1ms to 100ms")
    return ns


def _tunnel_list(value):
    if value == "all":
        return list(TUNNELS)
    return value.replace(",", " ").split() if isinstance(value, str) else value


Tunnels = Annotated[list[Literal[TUNNELS]], BeforeValidator(_tunnel_list)]
Retire = Annotated[Duration, AfterValidator(_retire_time)]

GENERAL = {  # key: (type, default, help)
    "agent_id": (str, "qoetap", "who saw it: written into every event"),
    "workers": (Annotated[int, Field(ge=1, le=WORKERS_MAX)], 1, "threads; events do not depend on it"),
    "batch_rows": (Annotated[int, Field(ge=1, le=65536)], 4096, "packets decoded at a time; nor on this"),
    "tunnels": (Tunnels, [], f"tunnels whose inner packet counts: a list of {', '.join(TUNNELS)}, or all"),
    "filter": (str, "", "only packets that match this expression, as in tcpdump: udp port 443; empty: all"),
    "seed": (Annotated[int, Field(ge=0)] | None, None, "fixes the secret keys of hashes; null: others at each start"),
    "outputs": (
        list[str],
        [],
        "where events go, as with -o: FILE.jsonl, kafka://HOST/TOPIC, https://HOST/PATH, table, - ...; none: table",
    ),
    "rotate_every": (
        Duration,
        parse_duration("1h"),
        "of files with the time in their name, as events-%Y%m%dT%H%M%S.jsonl, a new one begins so often, UTC; 0: never",
    ),
    "rotate_size": (Size, parse_size("256MiB"), "or when one has become so large; 0: never"),
}

SNAPLEN_MAX_bytes = 262144  # what tcpdump takes for the whole packet
GROUP_MAX = 65535  # of PACKET_FANOUT

LIVE = {  # the section `live`, in the same form
    "interfaces": (list[str], [], "where to listen, as with -i"),
    "ring_size": (Size, parse_size("64MiB"), "memory that a worker shares with the kernel, for each interface"),
    "block_size": (Size, parse_size("1MiB"), "of the ring's blocks: each is handed over when full"),
    "retire": (Retire, parse_duration("8ms"), "or after this, 1ms to 100ms: "
               "events are late by as much"),
    "snaplen": (Annotated[int, Field(ge=96, le=SNAPLEN_MAX_bytes)], 256, "bytes taken of a packet; 262144: all"),
    "promiscuous": (bool, True, "packets for others too"),
    "outgoing": (bool, True, "packets that this host sends too"),
    "fanout": (Literal["pair", "flow"], "pair", "what stays with one worker: all between two hosts, or a flow by the "
               "kernel's hash, which parts PTP, fragments and tunnels"),
    "fanout_group": (Annotated[int, Field(ge=1, le=GROUP_MAX)] | None, None, "share the packets with other processes "
                     "of this group; null: with none"),
    "hardware_timestamps": (bool, False, "of interfaces that have them; needs CAP_NET_ADMIN once, and their clock set"),
    "stats_every": (Duration, parse_duration("1m"), "a line of counts and a stats event so often; 0: none"),
    "metrics": (str, "", "address for Prometheus, such as 127.0.0.1:9464 (/metrics, /healthz); empty: none"),
    "write": (str, "", "folder for evidence, the flow's last packets for each event of write_on; empty: none"),
    "write_on": (list[str], ["iqn.stall_start", "iqn.stall_end"], "events that leave evidence"),
    "write_seconds": (Duration, parse_duration("10s"), "how far back evidence goes"),
    "write_size": (Size, parse_size("64MiB"), "memory in which packets are kept for evidence, of all workers"),
    "write_files": (Annotated[int, Field(ge=1)], 1000, "files of evidence that a run writes at most"),
    "loss_allowed": (Annotated[float, Field(ge=0, le=1)], 0.01, "share of packets, or of an output's events, "
                     "in replay too; more lost: exit status 5"),
}  # fmt: skip


SECTIONS = {"live": LIVE, "inline": INLINE, "serve": SERVE, "dns": DNS}


def option_type(option):
    """Type of a detector's option for pydantic."""
    if option.kind == DURATION:
        return Annotated[Duration, AfterValidator(_at_least(int(option.low)))]
    if option.kind == CHOICE:
        return Literal[option.choices]
    if option.kind == FLAG:
        return bool
    if option.kind == NUMBER:
        return Annotated[float, Field(ge=option.low, allow_inf_nan=False)]
    return Annotated[int, Field(ge=option.low, le=COUNT_MAX)]


def _at_least(low_ns):
    def check(ns):
        if ns < low_ns:
            raise ValueError(f"the least is {duration_text(low_ns)}")
        return ns

    return check


def option_default(option):
    return parse_duration(option.default) if option.kind == DURATION else option.default


def detector_model(detector):
    """Section of one detector: enabled, capacity and its options."""
    fields = {
        "enabled": (bool, Field(True, description="run this detector")),
        "capacity": (
            Annotated[int, Field(ge=1, le=CAPACITY_MAX)],
            Field(detector.capacity, description="states its table holds before the oldest give way"),
        ),
    }
    for o in detector.options:
        fields[o.name] = (option_type(o), Field(option_default(o), description=o.help))
    return create_model(f"{detector.name} section", __base__=Section, **fields)


def config_model(detectors):
    """The whole configuration for `detectors` ({name: Detector})."""
    sections = {name: detector_model(d) for name, d in detectors.items()}
    inner = {name: (model, Field(default_factory=model)) for name, model in sections.items()}
    fields = fields_of(GENERAL)
    made = [create_model(name, __base__=Section, **fields_of(keys)) for name, keys in SECTIONS.items()]
    for model in (*made, create_model("detectors", __base__=Section, **inner)):
        fields[model.__name__] = (model, Field(default_factory=model))
    return create_model("configuration", __base__=Section, **fields)


def known_keys(model, prefix=""):
    """Every key that there is, dotted; of a list of sections those of one of them."""
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        kind = get_args(field.annotation)[0] if get_origin(field.annotation) is list else field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += known_keys(kind, f"{prefix}{name}.")
    return found


def read_file(path):
    """Layer of a YAML file. ConfigError if it cannot be read or is no mapping."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no UTF-8 text, so no YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        what = getattr(error, "problem", None) or "unreadable"
        raise ConfigError(f"{path}: {where}not valid YAML ({what})") from error
    if values is None:
        return Layer(path, {})
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold keys and values, as `qoetap check --defaults` prints them")
    return Layer(path, _with_text_keys(values))


def _with_text_keys(values):
    """The same, but the key `on`, which is a truth value in YAML 1.1, as it was written."""
    if isinstance(values, list):
        return [_with_text_keys(value) for value in values]
    if not isinstance(values, dict):
        return values
    return {"on" if key is True else key: _with_text_keys(value) for key, value in values.items()}


def assignment(text):
    """Layer of one KEY=VALUE; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        named = re.split("[:=]", text, maxsplit=1)[0]  # what follows may be a secret
        raise ConfigError(f"--set {named}: write it as KEY=VALUE, for example detectors.flow.idle=60s")
    try:
        values = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: its value is not valid YAML") from error
    return Layer("--set", nested(key.strip().split("."), _with_text_keys(values)))


def nested(keys, value):
    """{"a": {"b": value}} of ["a", "b"]."""
    for key in reversed(keys):
        value = {key: value}
    return value


def only(names, detectors):
    """Layer that runs the named detectors and no others. ConfigError if there is no such detector."""
    for name in names:
        if name not in detectors:
            raise ConfigError(f"--detectors: there is no detector {name!r}{nearest(name, detectors)}")
    return Layer("--detectors", {"detectors": {name: {"enabled": name in names} for name in detectors}})


def merge(low, high):
    """`high` over `low`, section by section."""
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def validate(layers, detectors):
    """The effective configuration of Layers, later ones winning. ConfigError names origin and key."""
    model, values = config_model(detectors), {}
    for layer in layers:
        values = merge(values, layer.values)
    try:
        return model.model_validate(_without_empty(values))
    except ValidationError as error:
        raise ConfigError(sentence(error.errors()[0], layers, model)) from None


def _without_empty(values):
    """Without sections that are just a heading (null in YAML)."""
    sections = ("detectors", *SECTIONS)
    values = {key: value for key, value in values.items() if value is not None or key not in sections}
    inner = values.get("detectors")
    if isinstance(inner, dict):
        values = {**values, "detectors": {key: {} if value is None else value for key, value in inner.items()}}
    return values


def sentence(problem, layers, model):
    """One sentence for one of pydantic's errors."""
    steps = [str(step) for step in problem["loc"] if not isinstance(step, int)]
    known = known_keys(model)
    key = max((k for k in known if ".".join(steps).startswith(k)), key=len, default="")
    layer = next((layer for layer in reversed(layers) if _holds(layer.values, steps)), Layer("configuration", {}))
    within, item = _item(layer.values, problem["loc"])
    place = f"{layer.origin}: {item}"
    if problem["type"] == "extra_forbidden":
        return f"{place}unknown key {'.'.join(steps)}{nearest('.'.join(steps), known)}"
    told = (key or ".".join(steps)).removeprefix(within).removeprefix(".")
    if problem["type"] == "missing":
        return f"{place}{told} is missing"
    text = SHAPES.get(problem["type"], problem["msg"].removeprefix("Value error, ").removeprefix("Input "))
    place += f"{told}: " if told else ""
    if isinstance(problem["input"], BaseModel):  # what is wrong lies between its keys
        return f"{place}{text}"
    return f"{place}{text}, not {_as_told(key, problem['input'])}"


def _item(values, loc):
    """The list that `loc` lies in, dotted, and how a sentence about its item begins; both may be empty."""
    for at, step in enumerate(loc):
        if isinstance(step, int):
            found = values[step] if isinstance(values, list) else None
            name = found.get("name") if isinstance(found, dict) else None
            place = ".".join(map(str, loc[:at]))
            return place, f"{place}: {name if isinstance(name, str) else f'number {step + 1}'}: "
        values = values.get(step) if isinstance(values, dict) else None
    return "", ""


def _as_told(key, value):
    """A wrong value as a sentence tells it: outputs may hold secrets."""
    if key != "outputs":
        return repr(value)
    return repr(redacted(value)) if isinstance(value, str) else f"a {type(value).__name__}"


def _holds(values, steps):
    """True if the layer says something about the key at `steps`."""
    for step in steps:
        if not isinstance(values, dict):
            return True
        if step not in values:
            return False
        values = values[step]
    return True


def load(layers, detectors):
    """The effective configuration, its detectors' own checks done too. ConfigError names origin and key."""
    settings = validate(layers, detectors)
    for name, detector in chosen(settings, detectors).items():
        build_params(detector, getattr(settings.detectors, name))
    check_filter(settings, layers)
    check_inline(settings, layers, [kind.name for d in chosen(settings, detectors).values() for kind in d.events])
    check_control(settings, layers)
    return settings


def check_control(settings, layers):
    """ConfigError if what `serve` and `dns` list does not fit together."""
    try:
        check_redirection(settings)
    except ValueError as error:
        section = str(error).partition(".")[0]
        origin = next(layer.origin for layer in reversed(layers) if section in layer.values)
        raise ConfigError(f"{origin}: {error}") from None


def check_inline(settings, layers, events):
    """ConfigError if classes or rules of `inline` do not fit together; `events`: names of those that may come."""
    try:
        classes.check(settings.inline, events)
    except ValueError as error:
        written = [layer for layer in layers if {"classes", "mitigation"} & set(layer.values.get("inline", ()))]
        origin = [layer.origin for layer in written or layers if "inline" in layer.values][-1]
        raise ConfigError(f"{origin}: inline.{error}") from None


def check_filter(settings, layers):
    """ConfigError if libpcap makes nothing of the filter."""
    try:
        check_expression(settings.filter)
    except CaptureError as error:
        origin = next(layer.origin for layer in reversed(layers) if "filter" in layer.values)
        raise ConfigError(f"{origin}: {error}") from None


def chosen(settings, detectors):
    """The enabled ones of `detectors`."""
    return {name: d for name, d in detectors.items() if getattr(settings.detectors, name).enabled}


def derive(root, purpose):
    """Secret bytes for one purpose from the root secret."""
    return hashlib.blake2b(purpose, digest_size=SECRET_BYTES, key=root).digest()


def root_secret(seed):
    """Bytes from which all keys of a start are derived; `seed` fixes them, None takes random ones."""
    return os.urandom(SECRET_BYTES) if seed is None else hashlib.sha256(str(seed).encode()).digest()[:SECRET_BYTES]


def build_params(detector, section, root=b""):
    """Params rows (1,) of a detector: its options, what it derives, `secret`. ConfigError from its own checks."""
    fields = [(o.name, FIELD_TYPES[o.kind]) for o in detector.options] + [(name, "i8") for name in detector.derived]
    params = rows(np.dtype([("secret", "u8"), *fields], align=True), 1)
    params["secret"] = int.from_bytes(derive(root, detector.name.encode())[:8], "little")
    for o in detector.options:
        value = getattr(section, o.name)
        params[o.name] = o.choices.index(value) if o.kind == CHOICE else value
    if detector.prepare:
        try:
            detector.prepare(params[0])
        except ValueError as error:
            raise ConfigError(f"configuration: detectors.{detector.name}: {str(error).rstrip('.')}") from error
    return params


def tunnel_bits(settings):
    """The tunnels to enter, as wire.decode_options takes them."""
    return sum(1 << TUNNELS.index(name) for name in set(settings.tunnels))


def _as_it_is(value):
    return value


WRITTEN = {Duration: duration_text, Retire: duration_text, Size: size_text}


def as_values(settings, detectors):
    """The configuration as it would stand in a file, but without secrets: durations as text."""
    values = settings.model_dump()
    values["outputs"] = [redacted(spec) for spec in settings.outputs]
    values["inline"] = inline_values(settings.inline)
    values.update({name: serve_keys.values_of(getattr(settings, name)) for name in ("serve", "dns")})
    for section, keys in ((values, GENERAL), (values["live"], LIVE)):
        for name, (kind, _, _) in keys.items():
            section[name] = WRITTEN.get(kind, _as_it_is)(section[name])
    for name, detector in detectors.items():
        section = values["detectors"][name]
        for o in detector.options:
            if o.kind == DURATION:
                section[o.name] = duration_text(section[o.name])
    return values


def document(detectors):
    """The default configuration as commented YAML: what defaults.yaml holds for the detectors of this package."""
    lines = ["# qoetap's configuration: every key with its default. Copy what you change; unknown keys are errors.", ""]
    every = as_values(validate([], detectors), detectors)
    for name, (_, _, text) in GENERAL.items():
        lines += [f"# {text}", f"{name}: {_scalar(every[name])}", ""]
    helps = {"inline": lists_help(), **{name: serve_keys.lists_help(name) for name in serve_keys.LISTS}}
    for section, keys in SECTIONS.items():
        lines.append(f"{section}:")
        for name, (_, _, text) in keys.items():
            lines += [f"  # {text}", f"  {name}: {_scalar(every[section][name])}"]
        lines += [*(f"  {line}" for line in helps.get(section, ())), ""]
    lines.append("detectors:")
    values = every["detectors"]
    for name, d in detectors.items():
        lines += [f"  {name}:"]
        model = detector_model(d)
        options = {o.name: o for o in d.options}
        for key, value in values[name].items():
            about = _help(model.model_fields[key].description, options.get(key))
            lines += [f"    # {about}", f"    {key}: {_scalar(value)}"]
        lines.append("")
    return "\n".join(lines)


def _help(text, option):
    return text + (f" ({', '.join(option.choices)})" if option and not all(c in text for c in option.choices) else "")


def _scalar(value):
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
