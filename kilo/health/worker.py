"""The health worker: serves what the others say about themselves, and touches nothing."""

from __future__ import annotations

from kilo.health.draw import Artist
from kilo.health.gather import Gatherer
from kilo.health.server import Server, listening_socket
from kilo.health.site import Site
from kilo.worker import Context


class HealthWorker:
    """See the module. An address that cannot be listened on is a PermanentError."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._server: Server | None = None

    def start(self) -> None:
        context = self._context
        sock = listening_socket(*context.config.listen)
        address = sock.getsockname()
        site = Site(Gatherer(context).snapshot, Artist())
        self._server = Server(context.loop, sock, site.handle)
        where = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
        context.report.info["listen"] = where
        context.log.info("listening", address=where)
        context.report.ready()

    def stop(self, clean_up: bool) -> None:
        if self._server is not None:
            self._server.close()
