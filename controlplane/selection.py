"""Routes of page loads, curves and the data centre of a user, /v1: requests in, JSON out. They decide nothing."""

import asyncio
from http import HTTPStatus
from typing import Annotated, Literal, NotRequired

from fastapi import APIRouter, Query
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from controlplane.choice import REASONS
from controlplane.contents import CONTENTS
from controlplane.curves import SECONDS_MAX
from controlplane.load import CLASSES, UNKNOWN
from controlplane.prefixes import PATTERN, network_of
from controlplane.problems import BODY, Refused, documented
from controlplane.shapes import Count, Load, Nanoseconds, Number, PathName

PAGE_LOADS_MAX = 10_000
BYTES_MAX = 10**15
Kind = Literal[*CONTENTS]
Seconds = Annotated[float, Field(gt=0, le=SECONDS_MAX, allow_inf_nan=False), Number]
Class = Literal[*CLASSES, UNKNOWN]
Client = Annotated[
    str,
    AfterValidator(lambda text: network_of(text) and text),  # tells more than that the pattern does not match
    Query(description="address or prefix of the user, IPv4 or IPv6", json_schema_extra={"pattern": PATTERN}),
]
ContentOf = Annotated[Kind, Query(description="what the user is about to load")]


class PageLoad(TypedDict):
    """A measured page load."""

    path: PathName
    content: Kind
    seconds: Seconds
    ts_ns: Annotated[Nanoseconds, Field(description="when it began, since 1970")]
    bytes: NotRequired[Annotated[int, Field(ge=0, le=BYTES_MAX), Number] | None]
    load: NotRequired[Annotated[Load | None, Field(description="of the path then; without one its reading counts")]]


class PageLoadsTaken(TypedDict):
    """What became of page loads; it is on disk."""

    accepted: Count
    duplicates: Annotated[Count, Field(description="same path, content and time: were there before")]
    rejected: Annotated[dict[str, Count], Field(description="by reason: no_load (of its path), ahead (of our time)")]


class Point(TypedDict):
    """A level of a curve."""

    load: Load
    seconds: Seconds
    pairs: Annotated[int, Field(ge=1)]


class CurveDocument(TypedDict):
    """Page load time against load: linear between points, constant beyond them."""

    format: str
    version: int
    content: Kind
    pairs: Count
    points: list[Point]


class CurveAnswer(TypedDict):
    """What is known of a content."""

    content: Kind
    pairs: Annotated[Count, Field(description="page loads that are kept")]
    reason: Annotated[str | None, Field(description="why there is no curve")]
    curve: CurveDocument | None


CandidateAnswer = TypedDict(  # `class` is a keyword, so this form
    "CandidateAnswer",
    {
        "data_centre": str,
        "path": str,
        "load": Load | None,
        "class": Class,
        "expected_s": Annotated[float | None, Field(description="null: its load is not known")],
        "expected_low_s": Annotated[float | None, Field(description="at load_low; null: the spread is not known")],
        "expected_high_s": Annotated[float | None, Field(description="at load_high, the same")],
        "delay_ns": int | None,
        "interval_s": Annotated[float, Field(ge=0)],
        "chosen": Annotated[bool, Field(description="whether users are sent there now")],
    },
)

SelectAnswer = TypedDict(
    "SelectAnswer",
    {
        "data_centre": str,
        "addresses": list[str],
        "content": Kind,
        "aggregation": Annotated[str, Field(description="point that the user belongs to")],
        "prefix": Annotated[str, Field(description="of the aggregation point, the longest that covers the user")],
        "expected_s": Annotated[float | None, Field(description="time of a page load")],
        "class": Class,
        "reason": Annotated[Literal[*REASONS], Field(description="; ".join(f"{k}: {v}" for k, v in REASONS.items()))],
        "candidates": list[CandidateAnswer],
    },
)


def router(selection, clock):
    """APIRouter of a centres.Selection. clock: ns since 1970."""
    router = APIRouter(tags=["selection"])

    @router.post("/v1/page-loads", response_model=PageLoadsTaken, responses=documented(*BODY, 503))
    async def post_page_loads(page_loads: Annotated[list[PageLoad], Field(max_length=PAGE_LOADS_MAX)]):
        """Take measured page loads: curves are learned from them. One that is sent twice counts once."""
        written = await asyncio.to_thread(selection.take, page_loads, clock())  # loads of then may take long to tell
        taken = await asyncio.wrap_future(written)
        if taken["accepted"]:
            await asyncio.to_thread(selection.learn, {one["content"] for one in page_loads})
        return taken

    @router.get("/v1/curves", response_model=list[CurveAnswer], responses=documented())
    async def get_curves():
        """Page load time against load, of each content."""
        return [selection.curve(content) for content in CONTENTS]

    @router.get("/v1/curves/{content}", response_model=CurveAnswer, responses=documented(422))
    async def get_curve(content: Kind):
        """Page load time against load, of one content."""
        return selection.curve(content)

    @router.get("/v1/select", response_model=SelectAnswer, responses=documented(404, 422))
    async def get_select(client: Client, content: ContentOf = "page"):
        """The data centre that is expected to serve a user best."""
        try:
            return selection.select(network_of(client), content, clock())
        except KeyError:
            detail = f"no aggregation point has {client}: serve.aggregations lists their prefixes"
            raise Refused(HTTPStatus.NOT_FOUND, detail) from None

    return router
