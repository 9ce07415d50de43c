"""Routes of the load service, /v1: requests in, JSON out. They decide nothing.

What only reads memory is answered in the event loop; what waits for the state file is awaited, or runs in a thread.
"""

import asyncio
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request
from pydantic import Field, WithJsonSchema
from starlette.responses import Response, StreamingResponse

from controlplane.ingest import given, parse
from controlplane.load_schema import SCHEMA as MODEL
from controlplane.problems import BODY, Refused, documented, later
from controlplane.service import SAMPLES_MAX
from controlplane.shapes import Delay, Health, PathName, Reading, SampleList, Stored, Taken
from controlplane.streams import KIND

SECOND_ns = 10**9
NDJSON = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")
BIG_bytes = 1 << 15  # parsed in another thread
DELAYS_MAX = 10_000
SECONDS_MAX = 3650 * 86_400

Named = Annotated[PathName, Query(description="name of a path")]
NamedOrAll = Annotated[PathName | None, Query(description="name of a path; without one: all")]
InUrl = Annotated[PathName, Path(description="name of a path")]
Seconds = Annotated[float, Query(gt=0, le=SECONDS_MAX, allow_inf_nan=False, description="how far back")]
Version = Annotated[int | None, Query(ge=1, le=10**9, description="without one: the model in force")]
Document = Annotated[dict[str, Any], WithJsonSchema(MODEL)]
Delays = Delay | Annotated[list[Delay], Field(max_length=DELAYS_MAX)]
OPENMETRICS = {200: {"content": {"application/openmetrics-text": {"schema": {"type": "string"}}}}}
EVENT = {  # itemSchema: of OpenAPI 3.2; who knows 3.1 only passes it over
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"const": "load"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/Reading"},
        },
    },
}
LINES = {
    "requestBody": {
        "required": True,
        "description": "Events, one JSON object a line (docs/events.md), as they are or packed with gzip.",
        "content": {NDJSON[0]: {"schema": {"type": "string"}}},
    }
}


def event_routes(service, clock):
    """What brings samples. Answered when they are on disk."""
    router = APIRouter(tags=["samples"])
    responses = documented(*BODY, 503)

    @router.post("/v1/events", response_model=Taken, responses=responses, openapi_extra=LINES)
    async def post_events(request: Request):
        """Take events of agents, as the sink `http` posts them. An event that is sent twice counts once."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in NDJSON:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send Content-Type: {NDJSON[0]}")
        body, now_ns = await request.body(), clock()
        parsed = parse(body, now_ns) if len(body) < BIG_bytes else await asyncio.to_thread(parse, body, now_ns)
        return await asyncio.wrap_future(service.submit(parsed, now_ns))

    @router.post("/v1/delay", response_model=Taken, responses=responses)
    async def post_delay(delays: Delays):
        """Take one path delay, or a list of them, from whoever measures them."""
        now_ns, found = clock(), delays if isinstance(delays, list) else [delays]
        return await asyncio.wrap_future(service.submit(given(found, now_ns), now_ns))

    return router


def load_routes(service, streams, clock):
    """What readings and samples are asked for by."""
    router = APIRouter(tags=["load"])

    @router.get("/v1/paths", response_model=list[Reading], responses=documented())
    def get_paths():
        """Readings of all paths, by name."""
        return service.paths(clock())

    @router.get("/v1/load", response_model=Reading, responses=documented(404, 422))
    async def get_load(path: Named):
        """Reading of a path. Its load is null, its class unknown, when it is older than 3 intervals."""
        return service.load(known(service, path), clock())

    responses = documented(404, 422) | {200: {"description": "Readings", "content": {KIND: {"itemSchema": EVENT}}}}

    @router.get("/v1/load/stream", response_class=EventStream, responses=responses)
    async def get_stream(path: NamedOrAll = None):
        """Readings as server-sent events `load`, each time that they change."""
        name = path and known(service, path)
        streams.enter()
        return EventStream(streams.events(name))

    @router.get("/v1/samples", response_model=SampleList, responses=documented(404, 422, 503))
    def get_samples(path: Named, seconds: Seconds = 600.0):
        """Samples of the last seconds, the latest 10,000 of them."""
        since_ns = clock() - int(seconds * SECOND_ns)
        return {"path": path, "samples": service.samples(known(service, path), since_ns, SAMPLES_MAX)}

    return router


class EventStream(StreamingResponse):
    media_type = KIND


def model_routes(service, clock):
    """Models of paths."""
    router = APIRouter(tags=["models"])

    @router.get("/v1/models/{path}", response_model=Document, responses=documented(404, 422, 503))
    def get_model(path: InUrl, version: Version = None):
        """The model that is in force, or an earlier one: a document that `PUT` takes."""
        try:
            return service.model(known(service, path), version)
        except KeyError:
            which = "model" if version is None else f"model {version}"
            raise Refused(HTTPStatus.NOT_FOUND, f"path {path!r} has no {which}") from None

    @router.put("/v1/models/{path}", response_model=Stored, responses=documented(404, 409, *BODY, 503))
    async def put_model(path: InUrl, model: Annotated[Document, Body()]):
        """Set the model of a path; earlier ones are kept. The same one again changes nothing."""
        if known(service, path) in service.settings.models:
            raise Refused(HTTPStatus.CONFLICT, f"the configuration gives the model of path {path!r}: change it there")
        try:
            future = service.set_model(path, model, clock())
        except ValueError as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        return {"path": path, "version": await asyncio.wrap_future(future)}

    return router


def own_routes(service, metrics):
    """How the service itself is."""
    router = APIRouter(tags=["service"])

    @router.get("/healthz", response_model=Health, responses=documented(503))
    async def get_health():
        """Whether state can be written."""
        if service.store.trouble:
            raise later(service.store.trouble)
        return {"status": "ok", "paths": len(service.known), "samples": service.counts["accepted"]}

    @router.get("/metrics", response_class=Text, responses=documented() | OPENMETRICS)
    def get_metrics(request: Request):
        """Counters and gauges for Prometheus."""
        text, kind = metrics.page(request.headers.get("accept"))
        return Response(text, media_type=kind)

    return router


class Text(Response):
    media_type = "text/plain"


def known(service, path):
    """The name of a path. Refused if there is no such path."""
    if path not in service.known:
        raise Refused(HTTPStatus.NOT_FOUND, f"there is no path {path!r}: /v1/paths lists them")
    return path
