"""Workers on a kernel that has faults, or that do not hear it: for processes of their own, which need not
import what tests do."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from kilo.netctl import worker as module
from kilo.netctl.reconcile import Reconciler
from kilo.worker import Context
from tests.integration.netctl.faults import Refusing
from tests.integration.netctl.hosts import ip
from tests.integration.netctl.worker_box import Impatient


class Faulty(Impatient):
    """On a kernel that refuses what the file ``faults`` says: a kind of request, an error number, and
    how many of the kind are accepted first."""

    def __init__(self, context: Context) -> None:
        faults = Path(context.config.state_dir) / "faults"
        accepted: list[int] = []

        def refuse(asked: int) -> int:
            try:
                kind, number, spare = map(int, faults.read_text().split())
            except OSError:
                return 0
            if asked != kind:
                return 0
            accepted.append(asked)
            return 0 if len(accepted) <= spare else number

        def make(*arguments: Any) -> Refusing:
            made = Refusing(lambda request: refuse(request.kind))
            made.conceal = refuse
            return made

        vars(module)["Netlink"] = make
        super().__init__(context)


class Deaf(Impatient):
    """Hears next to nothing of what the kernel says at once."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        with socket.socket(fileno=os.dup(self._monitor._events.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)


class DeafAndHasty(Deaf):
    """Reads everything again sooner after it has just done so."""

    def __init__(self, context: Context) -> None:
        module.LOST_GAP = 0.1
        super().__init__(context)


class Interrupted(Impatient):
    """Once there is a file ``away``, its host's address is away for some steps of one pass: gone when the
    routes are put, and there again before the pass ends."""

    def start(self) -> None:
        super().start()
        away, prepare = Path(self._config.state_dir) / "away", self._passes.prepare
        gone: list[bool] = []

        def interrupted(reconciler: Reconciler) -> None:
            if reconciler is self._plane.addresses and away.exists() and not gone:
                gone.append(True)
                ip("addr del 10.1.0.10/24 dev eth0")
            elif reconciler is self._plane.rules and gone:
                gone.clear()
                ip("addr add 10.1.0.10/24 dev eth0")
                away.unlink()
            prepare(reconciler)

        self._passes.prepare = interrupted


class Inattentive(Impatient):
    """Does not hear of default routes."""

    def start(self) -> None:
        super().start()
        self._monitor.on_default = lambda: None
