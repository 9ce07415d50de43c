"""Errors of the API, as problem details (RFC 9457): what they look like, and how they are documented."""

from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from controlplane.database import Busy, StateError

PROBLEM = "application/problem+json"
RETRY_seconds = 1
INVALID_JSON = "json_invalid"  # pydantic's name of an error
ERRORS_TOLD = 10
SCHEMA = {
    "title": "Problem",
    "description": "What went wrong (RFC 9457).",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string", "description": "of the status"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "one sentence"},
        "errors": {
            "type": "array",
            "description": "where a request does not fit",
            "items": {"type": "object", "properties": {"where": {"type": "string"}, "what": {"type": "string"}}},
        },
    },
}
CONTENT = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
MEANINGS = {
    400: "The request cannot be read",
    401: "The token is missing or wrong",
    403: "This server was asked for by a name that is not its own",
    404: "There is no such thing",
    405: "This method is not for this",
    408: "The body did not come in time",
    409: "The configuration says otherwise",
    413: "The body is too large",
    415: "The body is of another type",
    422: "The request does not fit",
    429: "Too many requests, or listeners: try again after `Retry-After` seconds",
    503: "Not now: try again after `Retry-After` seconds",
}
NO_ROUTE = {
    404: "there is no such page: /openapi.json lists what there is",
    405: "this method is not for this: Allow tells which are",
}
ALWAYS = (400, 401, 403, 429)  # whatever is asked
BODY = (408, 413, 415, 422)  # where a body is sent


class Refused(HTTPException):
    """A request that is answered with a problem."""

    def __init__(self, status, detail, headers=None, **more):
        super().__init__(status, detail, headers)
        self.more = more


def documented(*statuses):
    """`responses` of a route that may answer with these, and with what every route may."""
    return {status: {"description": MEANINGS[status], "content": CONTENT} for status in sorted({*ALWAYS, *statuses})}


def reply(error):
    """Response of an HTTPException."""
    status = HTTPStatus(error.status_code)
    problem = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": str(error.detail)}
    more = getattr(error, "more", {})
    return JSONResponse(problem | more, status, error.headers, PROBLEM)


def later(detail, status=HTTPStatus.SERVICE_UNAVAILABLE):
    """Refused for now."""
    return Refused(status, detail, {"Retry-After": str(RETRY_seconds)})


async def on_http(request, error):
    if error.detail == HTTPStatus(error.status_code).phrase:  # of the framework
        error.detail = NO_ROUTE.get(error.status_code, error.detail)
    answer = reply(error)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        answer.headers["Allow"] = ", ".join(allowed(request))
    return answer


def allowed(request):
    """Methods of what the request asks for (RFC 9110, 10.2.1); the router knows those of one function only."""
    paths = request.app.openapi()["paths"]
    return sorted(method.upper() for method in paths.get(getattr(request.scope.get("route"), "path", None), ("get",)))


async def on_invalid(_, error):
    """What pydantic found: 400 if the body is no JSON, 415 if it is not said to be, else 422 and where."""
    if any(one["type"] == INVALID_JSON for one in error.errors()):
        return reply(Refused(HTTPStatus.BAD_REQUEST, "the body is no JSON"))
    if isinstance(error.body, bytes):
        return reply(Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json"))
    found = [{"where": ".".join(map(str, one["loc"])), "what": one["msg"]} for one in error.errors()]
    first = f"{found[0]['where']}: {found[0]['what']}"
    return reply(Refused(HTTPStatus.UNPROCESSABLE_ENTITY, first, errors=found[:ERRORS_TOLD]))


async def on_busy(_, error):
    return reply(later(f"{error}: try again"))


async def on_state(_, error):
    return reply(later(str(error)))


async def on_bug(_, error):
    """Ours; the service goes on."""
    return reply(Refused(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}"))


HANDLERS = {
    HTTPException: on_http,
    RequestValidationError: on_invalid,
    Busy: on_busy,
    StateError: on_state,
    Exception: on_bug,
}
