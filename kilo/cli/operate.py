"""``kg restart`` and ``kg tail``: ask the parent, read from the bus."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from typing import Any

import msgspec

from kilo.bus import WORKERS, Change, Loop, Subscription
from kilo.bus.topics import ALL
from kilo.config import Config, FlagError
from kilo.errors import KiloError
from kilo.supervisor.control import RESTART_LIMIT, Request, ask

NOT_RUNNING = 3


def main(command: str, config: Config, words: list[str]) -> int:
    """Run one of these commands; its exit status."""
    if len(words) > 1:
        raise FlagError(f"{words[1]!r} is not expected after kg {command} {words[0]}")
    return restart(config, words) if command == "restart" else tail(config, words)


def restart(config: Config, words: list[str]) -> int:
    """Restart a worker, or all, and say how long that took."""
    if not words or words[0] not in (*WORKERS, "all"):
        given = f", not {words[0]!r}" if words else ""
        raise FlagError(f"kg restart needs one of {', '.join(WORKERS)}, all{given}")
    try:
        reply = ask(config.run_dir, Request("restart", words[0]), RESTART_LIMIT + 5)
    except KiloError as e:
        print(f"kg: {e}", file=sys.stderr)
        return NOT_RUNNING
    for name, seconds in reply.seconds.items():
        print(f"{name} is ready again after {seconds:.2f} s")
    if reply.error:
        print(f"kg: {reply.error}", file=sys.stderr)
        return 1
    return 0


def tail(config: Config, words: list[str]) -> int:
    """Print every message of one worker's topics, or of all, as JSON lines until interrupted."""
    if words and words[0] not in WORKERS:
        raise FlagError(f"kg tail: {words[0]!r} is not a worker; there are {', '.join(WORKERS)}")
    loop = Loop()

    def show(topic: str) -> Any:
        def on_change(change: Change[Any]) -> None:
            record = {
                "ts": round(time.time(), 3),
                "topic": topic,
                "upserts": change.upserts,
                "removals": sorted(change.removals),
            }
            sys.stdout.write(msgspec.json.encode(record, enc_hook=str).decode() + "\n")
            sys.stdout.flush()

        return on_change

    def bad(topic: str, reason: str) -> None:
        print(f"kg tail: a message of {topic} was dropped: {reason}", file=sys.stderr)

    for topic in ALL:
        if not words or topic.producer == words[0]:
            Subscription(loop, config.run_dir, topic, show(topic.name), bad)
    signal.signal(signal.SIGTERM, lambda n, f: loop.stop())
    with contextlib.suppress(KeyboardInterrupt):
        loop.run()
    loop.close()
    return 0
