"""``kg plan --diff``: what netctl would change in this host's kernel now, with nothing changed.

The plan is the one that the agent here follows, as it passes on the bus; or, with ``--nodes``, one that is
made from files and from what this host is. Exit status: 0 nothing would be changed, 1 something would, 2 a
bad flag or input, 3 no agent publishes a plan, 4 it cannot be told.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import msgspec

from kilo.bus import PLAN, Change, Loop, Subscription, state_of
from kilo.cli.planinput import Cluster, Request
from kilo.cli.running import as_it_runs
from kilo.config import Config, settings_of
from kilo.errors import KiloError, PermanentError, TemporaryError
from kilo.mesh.owners import Known
from kilo.mesh.planner import Inputs, plan
from kilo.mesh.topology import CannotPlan
from kilo.model.host import WorkerState
from kilo.model.plan import PlanItem
from kilo.model.text import printable, printable_json
from kilo.netctl.diff import Found, Rehearsal, may_look
from kilo.sandbox.profiles import join_groups

SAME, DIFFERENT, UNUSABLE, NO_PLAN, UNKNOWN = range(5)
PATIENCE = 3.0
"""Seconds in which the agent's plan has to come; it is sent to whoever asks, at once."""
NETCTL_PATIENCE = 1.5
"""Seconds for netctl's word about itself: it may be away while the planner is not."""


def main(request: Request, cluster: Cluster | None) -> int:
    """Print the differences; the exit status. ``cluster`` None: of the agent's plan."""
    if not may_look():
        return _tell("the right to look is missing (CAP_NET_ADMIN): run it as root", UNKNOWN)
    config, says = request.config, list[str]()
    items: Mapping[str, PlanItem] | None = None
    if cluster is None:
        config, _ = as_it_runs(config, request.given)
        heard = Heard(config.run_dir)
        items = heard.plan
        if items is None:
            what = "it may wait for something, see kg status" if heard.netctl else "does kg run here?"
            return _tell(f"nobody publishes a plan in {config.run_dir}: {what}", NO_PLAN)
        if wrong := heard.contradiction(config):
            return _tell(wrong, UNUSABLE)
        config, says = heard.followed(config), heard.says()
    try:
        found = _find(request, cluster, config, items)
    except (PermanentError, CannotPlan) as e:
        return _tell(str(e), UNUSABLE)
    except KiloError as e:
        return _tell(str(e), UNKNOWN)
    _print(found._replace(notes=found.notes + says), request.format)
    return UNKNOWN if found.unknown else DIFFERENT if found.differences else SAME


def _tell(text: str, status: int) -> int:
    print(f"kg plan: {printable(text)}", file=sys.stderr)
    return status


def _find(
    request: Request, cluster: Cluster | None, config: Config, items: Mapping[str, PlanItem] | None
) -> Found:
    """Raises PermanentError, CannotPlan or TemporaryError."""
    rehearsal = Rehearsal(config, request.key_file)
    try:
        if items is None:
            assert cluster is not None  # noqa: S101 - there is one of the two
            items = planned(cluster, config, rehearsal)
        return rehearsal.run(items)
    finally:
        rehearsal.close()


def planned(cluster: Cluster, config: Config, rehearsal: Rehearsal) -> Mapping[str, PlanItem]:
    """What the agent would plan for these nodes and Peers on this host. Raises CannotPlan, TemporaryError."""
    local = cluster.given.get(config.hostname)
    if local is None:
        raise CannotPlan(f"no node is named {config.hostname!r}; --hostname names this host's")
    nodes = {name: node for name, node in cluster.nodes.items() if name != config.hostname}
    try:
        peers = rehearsal.peers()
    except TemporaryError:
        peers = {}  # the same will keep the device from being compared, which is told then
    known = Known({}, peers, rehearsal.routes())
    made = plan(
        Inputs(local, nodes, cluster.peers, rehearsal.facts(), peers, settings_of(config), None, known)
    )
    for conflict in made.conflicts.values():
        _tell(conflict, SAME)
    return made.items


class Heard:
    """What the bus says: the agent's plan, None if nobody publishes one, and netctl's word about itself."""

    def __init__(self, run_dir: str) -> None:
        join_groups()
        self.plan: dict[str, PlanItem] | None = None
        self.netctl: WorkerState | None = None
        self._loop = loop = Loop()
        self._items = Subscription(loop, run_dir, PLAN, self._on_plan)
        self._state = Subscription(loop, run_dir, state_of("netctl"), self._on_state)
        loop.run_for(PATIENCE)
        loop.close()

    def _on_plan(self, change: Change[PlanItem]) -> None:
        self.plan = dict(self._items.state)
        if self.netctl is None:
            self._loop.call_later(NETCTL_PATIENCE, self._loop.stop)
        else:
            self._loop.stop()

    def _on_state(self, change: Change[WorkerState]) -> None:
        self.netctl = self._state.state.get("state")
        if self.plan is not None:
            self._loop.stop()

    def contradiction(self, config: Config) -> str:
        """How the flags differ from the agent's, where that would make the answer worthless; or ""."""
        name = self.netctl.info.get("interface", "") if self.netctl else ""
        if name and name != config.interface:
            return f"--interface is {config.interface}, and the agent's is {name}: give it the agent's flags"
        return ""

    def followed(self, config: Config) -> Config:
        """``config``, with the firewall that netctl has chosen where the flag leaves that to it."""
        told = self.netctl.info.get("firewall", "") if self.netctl else ""
        kind = told.partition(":")[0].partition(",")[0]
        if config.firewall == "auto" and kind in ("legacy", "nftables"):
            return msgspec.structs.replace(config, firewall=kind)
        return config

    def says(self) -> list[str]:
        """What netctl itself says that does not work: it remembers what no look at the kernel shows."""
        failing = self.netctl.failing.values() if self.netctl else ()
        return [f"netctl says: {failure.message}" for failure in failing]


def _print(found: Found, form: str) -> None:
    if form == "json":
        told = {
            "differences": [difference._asdict() for difference in found.differences],
            "notes": found.notes,
            "unknown": found.unknown,
        }
        print(printable_json(msgspec.json.format(msgspec.json.encode(told), indent=2).decode()))
        return
    for sign, kind, what in found.differences:
        print(sign, kind, what)
    for note in found.notes:
        _tell(note, SAME)
    for unknown in found.unknown:
        _tell(f"it cannot be told: {unknown}", UNKNOWN)
