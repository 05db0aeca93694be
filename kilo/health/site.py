"""What is served where. Probes are answered at once; what takes work is a job for a thread.

Used by kilo.health.worker alone.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from kilo import graph
from kilo.bus import WORKERS
from kilo.health import metrics, page
from kilo.health.draw import FORMATS, LAYOUTS, Artist, Busy, CannotDraw, NotInstalled, Order
from kilo.health.gather import Snapshot, not_ready
from kilo.health.request import Refused, Request, Response, plain
from kilo.health.server import Job
from kilo.model.text import printable_json
from kilo.model.topology import TopologyHead

JSON = "application/json"
HTML = "text/html; charset=utf-8"
TEXT_FORMATS = ("dot", "gv")
DOT_TYPE = "text/vnd.graphviz; charset=utf-8"
LINKS_MAX = 100_000
DRAWN_LINKS_MAX = 5_000
CIRCO_LINKS_MAX = 300
"""Above this circo needs more than a few seconds, and where no layout is asked for, neato serves."""
FAILING_MAX = 50
PATHS = "/, /health, /ready, /metrics, /graph"


class Site:
    """Answers requests from snapshots; see kilo.health.server.Handler."""

    def __init__(self, snapshot: Callable[[], Snapshot], artist: Artist) -> None:
        self._snapshot = snapshot
        self._artist = artist

    def handle(self, request: Request) -> Response | Job:
        """The response, or the job that makes it. Raises Refused."""
        match request.path:
            case "/health":
                return plain(200, "ok")
            case "/ready":
                return ready(self._snapshot(), _worker(request))
            case "/metrics":
                now = self._snapshot()
                return lambda: Response(200, metrics.render(now), metrics.CONTENT_TYPE)
            case "/graph":
                return self._graph(request)
            case "/":
                return self._page()
        raise Refused(404, f"there are {PATHS}")

    def _page(self) -> Job:
        now, artist = self._snapshot(), self._artist

        def job() -> Response:
            drawable = artist.installed and links(now) <= DRAWN_LINKS_MAX
            return Response(200, page.render(now, drawable).encode(), HTML)

        return job

    def _graph(self, request: Request) -> Job:
        format_ = _choice(request, "format", "svg", (*FORMATS, *TEXT_FORMATS))
        now, artist = self._snapshot(), self._artist
        usual = "circo" if links(now) <= CIRCO_LINKS_MAX else "neato"
        layout = _choice(request, "layout", usual, LAYOUTS)
        if not now.segments:
            raise Refused(503, "there is no topology yet", ("Retry-After", "5"))
        limit = LINKS_MAX if format_ in TEXT_FORMATS else DRAWN_LINKS_MAX
        if links(now) > limit:
            raise Refused(503, f"{links(now)} links are too many; as {format_} there may be {limit}")
        if format_ in TEXT_FORMATS:
            return lambda: Response(200, dot(now).encode(), DOT_TYPE)
        order = Order(now.topology_version, layout, format_)
        return lambda: drawing(artist, order, now)


def ready(snapshot: Snapshot, worker: str = "") -> Response:
    """200 when all workers do all of their job, else 503; the body says what is missing or fails.

    With ``worker`` that one alone counts: for readiness probes of containers that hold one each.
    """
    reasons = {name: reason for name, reason in not_ready(snapshot).items() if worker in ("", name)}
    failing = {
        f"{name}/{key}"[:200]: failure.message[:200]
        for name, view in snapshot.workers.items()
        if view.state is not None and worker in ("", name)
        for key, failure in view.state.failing.items()
    }
    body = {
        "ready": not reasons,
        "not_ready": reasons,
        "failing": dict(sorted(failing.items())[:FAILING_MAX]),
    }
    return Response(
        503 if reasons else 200, printable_json(msgspec.json.encode(body).decode()).encode() + b"\n", JSON
    )


def dot(snapshot: Snapshot) -> str:
    """The topology in the DOT language, in an order that depends on nothing but it."""
    segments = sorted(snapshot.segments, key=lambda segment: segment.location)
    peers = sorted(snapshot.peers, key=lambda peer: peer.name)
    head = snapshot.head or TopologyHead(snapshot.hostname, "", False, "")
    return graph.dot(segments, peers, head.subnet)


def links(snapshot: Snapshot) -> int:
    """How many lines the graph has: it grows with the square of the segments."""
    leaders, peers = len(snapshot.segments), len(snapshot.peers)
    nodes = sum(len(segment.hostnames) for segment in snapshot.segments)
    return leaders * (leaders - 1) // 2 + leaders * peers + nodes - leaders


def drawing(artist: Artist, order: Order, snapshot: Snapshot) -> Response:
    """The drawing, or why there is none. Raises Refused."""
    try:
        body = artist.draw(order, lambda: dot(snapshot))
    except NotInstalled as e:
        raise Refused(501, str(e)) from e
    except Busy as e:
        raise Refused(503, str(e), ("Retry-After", "2")) from e
    except CannotDraw as e:
        raise Refused(503, f"cannot draw: {e}") from e
    return Response(200, body, FORMATS[order.format])


def _worker(request: Request) -> str:
    """The worker that is asked for, "" for all. Raises Refused."""
    name = request.query.get("worker", [""])[0]
    if name and name not in WORKERS:
        raise Refused(404, f"there is no such worker; there are {', '.join(WORKERS)}")
    return name


def _choice(request: Request, name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = request.query.get(name, [""])[0] or default
    if value not in allowed:
        raise Refused(400, f"{name}: allowed are {', '.join(allowed)}")
    return value
