"""``kg doctor``: what usually goes wrong on a node, looked at from here, and how to mend it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from kilo.cli.heard import DEAF, listen, unseen
from kilo.cli.running import as_it_runs
from kilo.config import Config
from kilo.doctor import agent, api, host
from kilo.doctor.finding import Finding
from kilo.errors import KiloError
from kilo.model.text import printable, printable_json

MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL", "unknown": "?   "}


def main(config: Config, output: str, given: Collection[str] = ()) -> int:
    """Print what was found, as ``text`` or ``json``; 1 if anything failed. ``given``: the fields of the
    Config that a flag or the environment gave; the others are as the agent has them that runs here."""
    config, flags = as_it_runs(config, given)
    found = []
    for finding in findings(config, flags):
        found.append(finding)
        if output == "text":
            print(text_of(finding), flush=True)
    if output == "json":
        print(printable_json(msgspec.json.format(msgspec.json.encode(found), indent=2).decode()))
    return int(any(finding.verdict == "fail" for finding in found))


def findings(config: Config, flags: str) -> Iterator[Finding]:
    """The agent first, since all else may follow from it; then the host, the API, and the agent's peers.
    ``flags``: whose ``config`` has, for a person."""
    heard, parent, refused = listen(config)
    unseeing = "" if heard.states else unseen(config.run_dir) or refused
    if unseeing:
        yield agent.unknown(unseeing)
    elif not heard.states:
        yield agent.down(config.run_dir, parent is not None)
    else:
        yield from agent.running(heard.reasons())
    yield Finding("flags", "ok", flags)
    for check in host.CHECKS:
        try:
            yield check(config)
        except (OSError, KiloError) as e:
            yield Finding(check.__name__.replace("_", " "), "unknown", f"cannot be looked at: {e}")
    yield from api.checks(config)
    if heard.deaf:
        yield Finding("handshakes", "unknown", DEAF)
    elif heard.states:
        yield from agent.of_peers(config, heard.peers)


def text_of(finding: Finding) -> str:
    """For a person: a line, and one more that says what to do."""
    line = printable(f"{MARKS[finding.verdict]}  {finding.check}: {finding.found}")
    return f"{line}\n      {printable(finding.mend)}" if finding.mend else line
