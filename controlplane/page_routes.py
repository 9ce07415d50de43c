"""The route of the operator's page: what the service knows, as plain values, to `page.render`."""

from http import HTTPStatus

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from controlplane import page
from controlplane.charts import SPARK_points
from controlplane.problems import documented
from controlplane.routes import NamedOrAll

KINDS = ("accepted", "duplicates", "late", "ignored")
REJECTED = "rejected."


def page_routes(service, clock, choices=tuple):
    """The page at /. choices: what makes the list of the data centres now chosen, answers of GET /v1/select."""
    router = APIRouter(tags=["page"])
    policy = {"Content-Security-Policy": page.policy()}
    missing = {404: {"description": "There is no such path; the page says so", "content": {"text/html": {}}}}

    @router.get("/", response_class=HTMLResponse, responses=documented(422) | missing)
    def get_page(request: Request, path: NamedOrAll = None):
        """Loads of all paths as a page for people, and one path in detail."""
        now_ns = clock()
        readings = service.paths(now_ns)
        view = page.View(path, tuple(choices()), request.headers.get("host", page.View().host))
        samples = {reading["path"]: service.recent(reading["path"], SPARK_points) for reading in page.listed(readings)}
        models, name = {}, page.detailed(readings, path)
        if name in service.known:
            samples[name], models[name] = service.recent(name), document(service, name)
        text = page.render(readings, samples, models, totals(service.counts), now_ns, view)
        return HTMLResponse(text, HTTPStatus.NOT_FOUND if name not in (None, *models) else HTTPStatus.OK, policy)

    return router


def document(service, name):
    """Of the model in force, or None."""
    return service.model(name) if service.in_force(name) else None


def totals(counts):
    """Counts of a LoadService, those of what was rejected by reason. Another thread may add some meanwhile."""
    rejected = {key.removeprefix(REJECTED): n for key, n in list(counts.items()) if key.startswith(REJECTED)}
    return {key: counts[key] for key in KINDS} | {"rejected": rejected}
