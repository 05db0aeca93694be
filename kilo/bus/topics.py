"""The topics: who publishes what. A topic is a mapping from key to one type of value.

============ ========= ==========================================================================
topic        producer  keys and values
============ ========= ==========================================================================
cluster      watcher   ``node/NAME``: Node that takes part; ``local``: this node's, always, while
                       its object exists; ``peer/NAME``: Peer; ``api``: ApiServer. Published once
                       all has been read.
problems     watcher   ``KIND/NAME/FIELD``: Problem
announce     mesh      ``announce``: Announcement
plan         mesh      each item under its own key, see kilo.model.plan
cni          mesh      ``cni``: CniTarget
topology     mesh      ``segment/LOCATION``, ``peer/NAME``, ``head``
host         netctl    ``host``: HostFacts
wireguard    netctl    public key: WireGuardPeerState
held         netctl    plan key of each route of ours that the kernel has: True
WORKER.state every one ``state``: WorkerState
============ ========= ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from kilo.bus.wire import MAX_MESSAGE, MAX_STATE, Frame, hook
from kilo.model.host import HostFacts, WireGuardPeerState, WorkerState
from kilo.model.node import Announcement, ClusterItem, Problem
from kilo.model.plan import CniTarget, PlanItem
from kilo.model.topology import TopologyItem
from kilo.model.workers import WORKERS

T = TypeVar("T")


@dataclass(frozen=True)
class Topic(Generic[T]):
    """A topic's name, its only producer, how many bytes a message may have, and the codec of its frames.

    ``confidant``: the worker that is told the secrets in it, beside root; others hear that there are some.
    """

    name: str
    producer: str
    value: Any
    most: int = MAX_MESSAGE
    confidant: str = ""
    decoder: msgspec.msgpack.Decoder[Frame[T]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        frame = Frame.__class_getitem__(self.value)  # type: ignore[attr-defined]
        object.__setattr__(self, "decoder", msgspec.msgpack.Decoder(frame, dec_hook=hook))


CLUSTER: Topic[ClusterItem] = Topic("cluster", "watcher", ClusterItem, confidant="mesh")
PROBLEMS: Topic[Problem] = Topic("problems", "watcher", Problem)
ANNOUNCE: Topic[Announcement] = Topic("announce", "mesh", Announcement)
PLAN: Topic[PlanItem] = Topic("plan", "mesh", PlanItem, confidant="netctl")
CNI: Topic[CniTarget] = Topic("cni", "mesh", CniTarget)
TOPOLOGY: Topic[TopologyItem] = Topic("topology", "mesh", TopologyItem)
HOST: Topic[HostFacts] = Topic("host", "netctl", HostFacts)
WIREGUARD: Topic[WireGuardPeerState] = Topic("wireguard", "netctl", WireGuardPeerState)
HELD: Topic[bool] = Topic("held", "netctl", bool)
STATES: dict[str, Topic[WorkerState]] = {w: Topic(f"{w}.state", w, WorkerState, MAX_STATE) for w in WORKERS}
ALL: tuple[Topic[Any], ...] = (
    CLUSTER,
    PROBLEMS,
    ANNOUNCE,
    PLAN,
    CNI,
    TOPOLOGY,
    HOST,
    WIREGUARD,
    HELD,
    *STATES.values(),
)


def state_of(worker: str) -> Topic[WorkerState]:
    """The topic on which ``worker`` reports about itself."""
    return STATES[worker]
