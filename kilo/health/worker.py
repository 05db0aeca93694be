"""The health worker: serves what the others say about themselves, and touches nothing."""

from __future__ import annotations

from kilo.errors import TemporaryError
from kilo.health.draw import Artist
from kilo.health.gather import Gatherer
from kilo.health.server import Server, listening_socket
from kilo.health.site import Site
from kilo.worker import Context

AGAIN = 2.0
"""Seconds until an address that is in use is tried again."""


class HealthWorker:
    """See the module. An address that can never be listened on is a PermanentError; one that is in use,
    by the agent that this one replaces perhaps, is waited for."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._server: Server | None = None

    def start(self) -> None:
        self._site = Site(Gatherer(self._context).snapshot, Artist())
        self._listen()

    def _listen(self) -> None:
        context = self._context
        try:
            sock = listening_socket(*context.config.listen)
        except TemporaryError as e:
            context.report.fail("listen", str(e), "listen")
            context.loop.call_later(AGAIN, self._listen)
            return
        context.report.mend("listen")
        address = sock.getsockname()
        self._server = Server(context.loop, sock, self._site.handle)
        where = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
        context.report.info["listen"] = where
        context.log.info("listening", address=where)
        context.report.ready()

    def stop(self, clean_up: bool) -> None:
        if self._server is not None:
            self._server.close()
