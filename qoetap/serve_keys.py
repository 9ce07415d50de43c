"""The sections `serve` and `dns` of the configuration: their keys and those of their lists, with their helps."""

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, create_model

from controlplane.contents import CONTENTS
from qoetap.bitrates import parse_rate, rate_text
from qoetap.durations import duration_text, parse_duration
from qoetap.inline_keys import Positive
from qoetap.keys import Duration, Rate, Section, Size, fields_of
from qoetap.sizes import parse_size, size_text

NAME = "^[A-Za-z0-9_.:-]{1,128}$"
LISTED_MAX = 4096


def address(text):
    return str(ipaddress.ip_address(text))


def prefix(text):
    return str(ipaddress.ip_network(text))


def hex_clock(text):
    if len(text) != 16 or not set(text) <= set("0123456789abcdef"):
        raise ValueError("must be 16 hexadecimal digits, as in ptp.master_clock")
    return text


Name = Annotated[str, Field(pattern=NAME)]
Address = Annotated[str, AfterValidator(address)]
Prefix = Annotated[str, AfterValidator(prefix)]
Clock = Annotated[str, AfterValidator(hex_clock)]
Share = Annotated[float, Field(ge=0, le=1)]

PATH = {  # key: (type, default, help)
    "name": (Name, ..., "what the API calls it"),
    "agent": (str, ..., "agent_id of the events"),
    "master_clock": (Clock, ..., "clockIdentity of the PTP master at its far end, 16 hexadecimal digits"),
    "domain": (Annotated[int, Field(ge=0, le=255)], 0, "domainNumber"),
    "interval": (Positive | None, None, "time between its samples; none: as observed"),
    "model": (str | None, None, "file of its model; none: the one set over the API, or serve.model"),
}  # fmt: skip

CENTRE = {
    "name": (Name, ..., "what the API calls it"),
    "addresses": (list[Address], ..., "of its servers, IPv4 and IPv6"),
    "paths": (dict[str, str], ..., "{aggregation: path}, the path from it to each aggregation point"),
    "rtt": (Duration, parse_duration("10ms"), "round trip without load, for contents whose curve is not learned"),
    "capacity": (Rate, parse_rate("100Mbit"), "of its paths, for the same"),
}

AGGREGATION = {
    "name": (Name, ..., "what the data centres call it"),
    "prefixes": (list[Prefix], ..., "of its users; the longest one that covers a user counts"),
}

ANSWERED = {
    "name": (str, ..., "domain name, such as video.example.com"),
    "content": (Literal[*CONTENTS], "page", "what users load from there: whose curve counts"),
    "fallback": (list[Address], ..., "what is answered while the service does not, IPv4 and IPv6"),
}

path_model = create_model("path", __base__=Section, **fields_of(PATH))
centre_model = create_model("data centre", __base__=Section, **fields_of(CENTRE))
aggregation_model = create_model("aggregation", __base__=Section, **fields_of(AGGREGATION))
answered_model = create_model("name", __base__=Section, **fields_of(ANSWERED))

SERVE = {
    "listen": (str, "127.0.0.1:9470", "address of the API and the page; others than loopback need a token"),
    "state": (str, "qoetap-state.sqlite", "file in which samples, models and curves are kept"),
    "events": (list[str], [], "events from there too, as with -r: FILE.jsonl, -, kafka://HOST/TOPIC"),
    "model": (str, "", "file of the model for paths that have none of their own; empty: none"),
    "interval": (Positive, parse_duration("4s"), "time between samples of a path while it is not known"),
    "keep": (Positive, parse_duration("7d"), "samples are kept for so long; older events are refused"),
    "body": (Size, parse_size("8MiB"), "of a request, unpacked, at most"),
    "requests": (Annotated[int, Field(ge=1)], 500, "of a client in a second, at most"),
    "hysteresis": (Share, 0.1, "another data centre is chosen only if it is better by this share and more than noise"),
    "near": (Share, 0.02, "data centres that differ by at most this share divide users among them, by their prefixes"),
    "paths": (Annotated[list[path_model], Field(max_length=LISTED_MAX)], [], "names and models of paths; others are "
              "named AGENT:MASTER_CLOCK:DOMAIN"),
    "aggregations": (Annotated[list[aggregation_model], Field(max_length=LISTED_MAX)], [], "where users come from"),
    "data_centres": (Annotated[list[centre_model], Field(max_length=LISTED_MAX)], [], "where they may be sent"),
}  # fmt: skip

DNS = {
    "listen": (list[str], ["127.0.0.1:5300"], "addresses, UDP and TCP"),
    "service": (str, "http://127.0.0.1:9470", "where `qoetap serve` answers"),
    "ttl": (Duration, parse_duration("5s"), "of answers"),
    "timeout": (Positive, parse_duration("200ms"), "for the service to answer; then the fallback is given"),
    "rate": (
        Annotated[int, Field(ge=1)],
        1000,
        "queries over UDP in a second that askers of one /24 or /56 may send; more are told to come over TCP",
    ),
    "ecs": (bool, True, "take the user's prefix from EDNS Client Subnet (RFC 7871), else the address that asks"),
    "names": (Annotated[list[answered_model], Field(max_length=LISTED_MAX)], [], "what is answered; else REFUSED"),
}
LISTS = {
    "serve": (("path", path_model), ("place users come from", aggregation_model), ("data centre", centre_model)),
    "dns": (("name", answered_model),),
}
_WRITTEN = {
    "body": size_text, "capacity": rate_text,
    **dict.fromkeys(("interval", "keep", "rtt", "ttl", "timeout"), duration_text),
}  # fmt: skip


def values_of(section):
    """A section, or an item of its lists, as it would stand in a file."""
    return {key: _written(key, getattr(section, key)) for key in type(section).model_fields}


def _written(key, value):
    if isinstance(value, list):
        return [values_of(item) if isinstance(item, Section) else item for item in value]
    return value if value is None else _WRITTEN.get(key, lambda same: same)(value)


def lists_help(section):
    """Comment lines about the keys of an item of each list of the section."""
    lines = []
    for title, model in LISTS[section]:
        lines += ["#", f"# keys of a {title}:"]
        for key, field in model.model_fields.items():
            default = "" if field.is_required() or field.default is None else f" [{_written(key, field.default)}]"
            lines.append(f"#   {key}: {field.description}{default}")
    return lines
