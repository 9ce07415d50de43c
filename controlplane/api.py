"""The HTTP API of the control plane: routes, errors and bounds put together, and its OpenAPI document."""

import time
from typing import NamedTuple

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from controlplane.guard import Guard
from controlplane.metrics import Metrics
from controlplane.problems import HANDLERS, SCHEMA
from controlplane.routes import event_routes, load_routes, model_routes, own_routes
from controlplane.streams import Streams

TITLE = "qoetap load service"
ABOUT = "Load of network paths from PTP delays, and what follows from it. Errors are problem details (RFC 9457)."
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "RFC 6750"},
    "basic": {"type": "http", "scheme": "basic", "description": "any user, the token as password: for browsers"},
}


class Limits(NamedTuple):
    """Who may ask, and how much."""

    token: str | None = None
    body_bytes: int = 8 << 20  # of a request, unpacked
    requests: int = 500  # of a client in a second


def make(service, limits=Limits(), version="1", routers=(), clock=time.time_ns):
    """(ASGI application, its Streams). routers: of other parts; version: of the program; clock: ns since 1970."""
    app = FastAPI(title=TITLE, version=version, description=ABOUT, docs_url=None, redoc_url=None)
    streams = Streams(service, clock)
    guard = Guard(app, limits.token, limits.body_bytes, limits.requests)
    metrics = Metrics(service, guard, streams, clock)
    own = (event_routes(service, clock), load_routes(service, streams, clock), model_routes(service, clock))
    for router in (*own, own_routes(service, metrics), *routers):
        app.include_router(router)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.openapi = lambda: document(app, limits.token is not None)
    return guard, streams


def document(app, guarded):
    """The OpenAPI document, made once. guarded: a token is needed."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        parts = found.setdefault("components", {})
        schemas = parts.setdefault("schemas", {})
        schemas["Problem"] = SCHEMA
        for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which no route answers with
            schemas.pop(name, None)
        if guarded:
            parts["securitySchemes"], found["security"] = SCHEMES, [{name: []} for name in SCHEMES]
        app.openapi_schema = found
    return app.openapi_schema
