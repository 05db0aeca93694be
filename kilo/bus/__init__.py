"""The bus: workers publish state, and whoever subscribes is given the whole of it first.

See docs/design/bus.md. The only package that imports zmq.
"""

from kilo.bus.loop import Loop, Timer
from kilo.bus.publisher import Publisher
from kilo.bus.subscriber import Change, Subscription
from kilo.bus.topics import (
    ANNOUNCE,
    CLUSTER,
    CNI,
    HELD,
    HOST,
    PLAN,
    PROBLEMS,
    TOPOLOGY,
    WIREGUARD,
    Topic,
    state_of,
)
from kilo.model.workers import WORKERS

__all__ = [
    "ANNOUNCE",
    "CLUSTER",
    "CNI",
    "HELD",
    "HOST",
    "PLAN",
    "PROBLEMS",
    "TOPOLOGY",
    "WIREGUARD",
    "WORKERS",
    "Change",
    "Loop",
    "Publisher",
    "Subscription",
    "Timer",
    "Topic",
    "state_of",
]
