"""``kg restart``, ``kg loglevel`` and ``kg tail``: ask the parent, read from the bus."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from kilo.bus import WORKERS, Change, Loop, Subscription, state_of
from kilo.bus.topics import ALL, Topic
from kilo.bus.wire import socket_path
from kilo.config import Config, FlagError
from kilo.errors import KiloError
from kilo.holders import listener
from kilo.log import LEVELS
from kilo.model.host import WorkerState
from kilo.model.text import printable, printable_json
from kilo.sandbox.profiles import join_groups
from kilo.supervisor.control import RESTART_LIMIT, Reply, Request, ask, has_parent

NOT_RUNNING = 3
MISSED_AFTER = 2.0
"""Seconds after which kg tail says who was not heard; a heartbeat comes every second."""
MOST_WORDS = {"restart": 1, "loglevel": 2, "tail": 1}


def main(command: str, config: Config, words: list[str]) -> int:
    """Run one of these commands; its exit status."""
    most = MOST_WORDS[command]
    if len(words) > most:
        raise FlagError(f"{words[most]!r} is not expected after kg {command} {' '.join(words[:most])}")
    return {"restart": restart, "loglevel": set_level, "tail": tail}[command](config, words)


def restart(config: Config, words: list[str]) -> int:
    """Restart a worker, or all, and say how long that took."""
    if not words or words[0] not in (*WORKERS, "all"):
        given = f", not {words[0]!r}" if words else ""
        raise FlagError(f"kg restart needs one of {', '.join(WORKERS)}, all{given}")
    if words[0] != "all" and not has_parent(config.run_dir):
        return restart_alone(config, words[0])
    return _tell(_ask(config, Request("restart", words[0])))


def set_level(config: Config, words: list[str]) -> int:
    """Change how much one worker logs, or the parent and all workers, until the agent ends."""
    if not words or words[0] not in LEVELS:
        given = f", not {words[0]!r}" if words else ""
        raise FlagError(f"kg loglevel needs one of {', '.join(LEVELS)}{given}")
    if words[1:] and words[1] not in WORKERS:
        raise FlagError(f"kg loglevel: {words[1]!r} is not a worker; there are {', '.join(WORKERS)}")
    return _tell(_ask(config, Request("loglevel", words[1] if words[1:] else "all", words[0])))


def _ask(config: Config, request: Request) -> Reply | None:
    try:
        return ask(config.run_dir, request, RESTART_LIMIT + 5)
    except KiloError as e:
        print(f"kg: {e}", file=sys.stderr)
        return None


def _tell(reply: Reply | None) -> int:
    """What the parent answered; the exit status."""
    if reply is None:
        return NOT_RUNNING
    for name, seconds in reply.seconds.items():
        print(f"{name} is ready again after {seconds:.2f} s")
    if reply.error:
        print(f"kg: {printable(reply.error)}", file=sys.stderr)
        return 1
    return 0


def restart_alone(config: Config, name: str) -> int:
    """Ask a worker without a parent to end, and wait for whoever keeps it to bring it back."""
    listening = listener(socket_path(config.run_dir, name))
    if listening is None:
        print(f"kg: neither a parent nor {name} answers in {config.run_dir}", file=sys.stderr)
        return NOT_RUNNING
    pid = listening.pid
    if not pid:
        print(f"kg: {name} runs in another container; ask there: kubectl exec -c {name} …", file=sys.stderr)
        return NOT_RUNNING
    loop, begun, before = Loop(), time.monotonic(), time.time()
    ready: list[float] = []

    def look(change: Change[WorkerState]) -> None:
        state = change.upserts.get("state")
        if state is not None and state.started > before and state.phase == "ready":
            ready.append(time.monotonic() - begun)
            loop.stop()

    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as e:
        print(f"kg: {name} (pid {pid}) cannot be asked to end: {e.strerror}", file=sys.stderr)
        return NOT_RUNNING
    print(f"{name} is asked to end; whoever keeps it has to start it again", flush=True)
    Subscription(loop, config.run_dir, state_of(name), look)
    loop.run_for(RESTART_LIMIT)
    loop.close()
    late = f"not ready after {RESTART_LIMIT:.0f} s: {name}"
    return _tell(Reply(seconds={name: ready[0]}) if ready else Reply(error=late))


def tail(config: Config, words: list[str]) -> int:
    """Print every message of one worker's topics, or of all, as JSON lines until interrupted."""
    if words and words[0] not in WORKERS:
        raise FlagError(f"kg tail: {words[0]!r} is not a worker; there are {', '.join(WORKERS)}")
    join_groups()
    loop = Loop()
    heard: set[str] = set()

    def show(topic: Topic[Any]) -> Callable[[Change[Any]], None]:
        def on_change(change: Change[Any]) -> None:
            heard.add(topic.producer)
            record = {
                "ts": round(time.time(), 3),
                "topic": topic.name,
                "upserts": change.upserts,
                "removals": sorted(change.removals),
            }
            print(printable_json(msgspec.json.encode(record, enc_hook=str).decode()), flush=True)

        return on_change

    def bad(topic: str, reason: str) -> None:
        print(f"kg tail: a message of {topic} was dropped: {reason}", file=sys.stderr)

    def miss() -> None:
        silent = [name for name in words or WORKERS if name not in heard]
        nobody = len(silent) == len(WORKERS)
        if silent:
            who = "nobody answers" if nobody else f"no answer from {', '.join(silent)}"
            print(f"kg tail: {who} in {config.run_dir}; waiting", file=sys.stderr, flush=True)

    for topic in ALL:
        if not words or topic.producer == words[0]:
            Subscription(loop, config.run_dir, topic, show(topic), bad)
    loop.call_later(MISSED_AFTER, miss)
    signal.signal(signal.SIGTERM, lambda n, f: loop.stop())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script's "&" has switched off
    with contextlib.suppress(KeyboardInterrupt):
        loop.run()
    loop.close()
    return 0 if heard else NOT_RUNNING
