"""What the API answers: the shapes of its JSON, from which its OpenAPI document is made. Plain dicts at run time."""

from typing import Annotated, Literal, NotRequired

from pydantic import BeforeValidator, Field
from typing_extensions import TypedDict  # that of typing is none to pydantic before Python 3.12

from controlplane.load import CLASSES, KINDS, UNKNOWN


def _number(value):
    """JSON's numbers: neither true nor "5", which pydantic takes for one."""
    if isinstance(value, (bool, str)):
        raise ValueError("should be a number")
    return value


NANOSECONDS_MAX = 9 * 10**18  # such that a float holds it too, as JSON's numbers may be read
Number = BeforeValidator(_number)
Load = Annotated[float, Field(ge=0, le=1), Number]
Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(max_length=128)]
PathName = Annotated[str, Field(min_length=1, max_length=256)]
Nanoseconds = Annotated[int, Field(ge=-NANOSECONDS_MAX, le=NANOSECONDS_MAX), Number]


class InForce(TypedDict):
    """The model that a load is told by."""

    version: Annotated[int, Field(ge=0, description="of this path's models; 0: the default model")]
    kind: Literal[KINDS]
    a_ns: float
    b: float
    low: Load
    congested: Load
    r2: float | None
    spread_known: Annotated[bool, Field(description="false: load_low and load_high are the bounds of the class")]


Reading = TypedDict(  # `class` is a keyword, so this form
    "Reading",
    {
        "path": str,
        "agent_id": str,
        "master_clock": str,
        "domain": Annotated[int, Field(ge=0, le=255)],
        "load": Annotated[Load | None, Field(description="smoothed; null where the class is unknown")],
        "load_low": Annotated[Load | None, Field(description="19 in 20 loads lie above, if the spread is known")],
        "load_high": Annotated[Load | None, Field(description="19 in 20 loads lie below, the same")],
        "class": Literal[*CLASSES, UNKNOWN],
        "raw_load": Annotated[Load | None, Field(description="from the last filtered delay alone")],
        "delay_ns": Annotated[int | None, Field(description="the last filtered delay; without a model the last one")],
        "samples": Annotated[Count, Field(description="accepted since the path is known")],
        "late": Annotated[Count, Field(description="refused, since they were older than samples are kept")],
        "last_ns": Annotated[int | None, Field(description="time of the latest sample")],
        "age_s": Annotated[float | None, Field(ge=0)],
        "stale": bool,
        "interval_s": Annotated[float, Field(ge=0, description="between samples")],
        "w": Annotated[float | None, Field(ge=0, le=1, description="weight of the past")],
        "model": InForce | None,
        "reason": Annotated[Literal["no_samples", "no_model", "stale"] | None, Field(description="of unknown")],
    },
)


class Taken(TypedDict):
    """What became of events; it is on disk."""

    accepted: Count
    duplicates: Annotated[Count, Field(description="were there before")]
    late: Annotated[Count, Field(description="older than samples are kept")]
    ignored: Annotated[Count, Field(description="events that tell no path delay")]
    rejected: Annotated[dict[str, Count], Field(description="by reason")]


class Delay(TypedDict):
    """A path delay: of a `path` that is known, or of agent_id, master_clock and domain."""

    path: NotRequired[PathName]
    agent_id: NotRequired[Text]
    master_clock: NotRequired[Annotated[str, Field(pattern="^[0-9a-f]{16}$")]]
    domain: NotRequired[Annotated[int, Field(ge=0, le=255), Number]]
    ts_ns: Annotated[Nanoseconds, Field(description="since 1970")]
    delay_ns: Nanoseconds
    id: NotRequired[Annotated[str, Field(max_length=64, description="tells apart delays of the same ts_ns")]]


class SampleList(TypedDict):
    """Samples in event-time order."""

    path: str
    samples: list[Annotated[list[int], Field(min_length=2, max_length=2, description="[ts_ns, delay_ns]")]]


class Stored(TypedDict):
    """The model that is now in force."""

    path: str
    version: Annotated[int, Field(ge=1)]


class Health(TypedDict):
    """Whether state can be written."""

    status: Literal["ok"]
    paths: Count
    samples: Count
