"""The worker in a process of its own on a host, fed with plans: what its tests share."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Any

from kilo.bus import PLAN, Subscription, Topic
from kilo.config import Config
from kilo.model.host import WorkerState
from kilo.model.plan import PlanItem
from kilo.netctl import fights
from kilo.netctl.worker import NetctlWorker
from kilo.worker import Context
from tests.feeding import Bus, Running, eventually, running
from tests.integration.netctl.hosts import Host, ip, lines
from tests.unit.netctl.plans import mesh

OURS = "proto 171"
PLAN_3 = mesh(3)
DESTINATIONS = {"10.64.1.0/24", "10.64.2.0/24", "10.64.3.0/24", "10.32.1.1", "10.32.2.1", "10.32.3.1"}


class Steady(NetctlWorker):
    """Looks at WireGuard's peers more often, and sees sooner that a fight is over: for tests that wait."""

    poll_period = 0.3

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        fights.FIRST, fights.LIMIT, self._fights.calm = 0.25, 2.0, 1.0


class Impatient(Steady):
    """With a heartbeat, too, that a test need not wait for."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        context.loop.call_every(0.1, context.beat)


class Box:
    """A host, the bus, and configurations for the worker."""

    def __init__(self, host: Host, tmp: Path) -> None:
        self.host, self._tmp = host, tmp
        host.wire()
        ip("route add default via 10.1.0.1")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self.bus = Bus(tmp / "run")
        self._followed: dict[str, Subscription[Any]] = {}

    def config(self, **flags: Any) -> Config:
        values: dict[str, Any] = {
            "interface": self.host.interface,
            "run_dir": str(self._tmp / "run"),
            "state_dir": str(self._tmp / "state"),
            "hostname": "localhost",
            "encapsulate": "never",
            "resync_period": 300.0,
        }
        return Config(**{**values, **flags})

    def worker(self, **flags: Any) -> contextlib.AbstractContextManager[Running]:
        return running("netctl", Impatient, self.config(**flags))

    def plan(self, items: dict[str, PlanItem], remove: tuple[str, ...] = ()) -> None:
        self.bus.update(PLAN, items, remove)

    def state(self) -> WorkerState:
        return eventually(lambda: self.bus.state("netctl"))

    def applied(self, pid: int | None = None) -> WorkerState:
        """The state of a worker (the process ``pid``) that has applied a whole plan."""

        def found() -> WorkerState | None:
            state = self.bus.state("netctl")
            done = state and "applied_generation" in state.gauges and (pid is None or state.pid == pid)
            return state if done else None

        return eventually(found, what="a plan applied")

    def whole(self) -> None:
        """Wait until the kernel has PLAN_3."""
        eventually(lambda: self.routes() == DESTINATIONS and len(self.peers()) == 3)

    def follow(self, topic: Topic[Any]) -> dict[str, Any]:
        """The state of a topic of netctl's."""
        if topic.name not in self._followed:

            def subscribe() -> None:
                self._followed[topic.name] = Subscription(
                    self.bus.loop, str(self.bus.run_dir), topic, lambda change: None
                )

            self.bus.on_loop(subscribe)
        return self._followed[topic.name].state

    def routes(self) -> set[str]:
        """The destinations of our routes."""
        return {line.split()[0] for line in lines("route") if OURS in line}

    def peers(self) -> dict[str, set[str]]:
        """Allowed IPs by public key, as wg prints them."""
        shown = subprocess.run(
            ["wg", "show", self.host.interface, "allowed-ips"], capture_output=True, text=True
        )
        return {line.split()[0]: set(line.split()[1:]) for line in shown.stdout.splitlines()}
