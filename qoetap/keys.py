"""What sections of the configuration are made of: kinds of values, their error, the nearest known key."""

import difflib
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from qoetap.bitrates import parse_rate
from qoetap.durations import parse_duration
from qoetap.exits import USAGE, Exit
from qoetap.sizes import parse_size

Duration = Annotated[int, BeforeValidator(parse_duration)]  # ns
Size = Annotated[int, BeforeValidator(parse_size)]  # bytes
Rate = Annotated[int, BeforeValidator(parse_rate)]  # bit/s
NAMES_TOLD = 10  # in a sentence


class ConfigError(Exit):
    """Something is wrong with the configuration."""

    def __init__(self, sentence):
        super().__init__(USAGE, sentence)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def fields_of(keys):
    """Fields for pydantic of {key: (type, default, help)}."""
    return {name: (kind, Field(default, description=text)) for name, (kind, default, text) in keys.items()}


def nearest(key, known):
    """How a sentence about an unknown key goes on."""
    known = list(known)
    near = [k for k in known if k.endswith(f".{key}")] or difflib.get_close_matches(key, known, 1, 0.5)
    return f", did you mean {near[0]}?" if near else f"; there are {', '.join(k for k in known if '.' not in k)}"


def nearest_name(name, known):
    """The same about a name, which may have dots itself."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1, 0.5)
    if near or not known:
        return f", did you mean {near[0]}?" if near else "; there are none"
    more = f" and {len(known) - NAMES_TOLD} more" if len(known) > NAMES_TOLD else ""
    return f"; there are {', '.join(known[:NAMES_TOLD])}{more}"
