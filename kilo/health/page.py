"""The topology page: one HTML document without scripts or anything from elsewhere.

It says when it was made and how old each part is; what a worker said that is not heard any more is
marked so. Every text goes through ``escape``. Pure. Used by kilo.health.site alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from html import escape as escape_html

from kilo import __version__
from kilo.health.gather import Snapshot, not_ready
from kilo.health.metrics import peer_names
from kilo.health.style import STYLE
from kilo.model.host import WireGuardPeerState
from kilo.model.readiness import WorkerView
from kilo.model.text import printable
from kilo.model.topology import PeerView, Segment, keepers

REFRESH = 10
ROWS_MAX = 1000
CELL_MAX = 12
TEXT_MAX = 4000
SESSION = 180
"""Seconds after a handshake for which a WireGuard session lasts."""


def render(snapshot: Snapshot, drawable: bool) -> str:
    """The document. ``drawable``: a drawing of this topology can be had from /graph."""
    reasons = not_ready(snapshot)
    title = escape(snapshot.hostname or "this node")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="refresh" content="{REFRESH}">',
        f"<title>{title}: Kilo</title><style>{STYLE}</style></head><body>",
        f"<header><h1>{title}</h1>{_verdict(reasons)}{_place(snapshot)}</header><main>",
        *_troubles(snapshot, reasons),
        *_workers(snapshot),
        *_graph(snapshot, drawable),
        *_segments(snapshot),
        *_nodes(snapshot),
        *_wireguard(snapshot),
        f"</main><footer>As of {_utc(snapshot.at)}. Kilo {escape(__version__)}. ",
        '<a href="/metrics">metrics</a> <a href="/ready">ready</a> <a href="/health">health</a>',
        "</footer></body></html>\n",
    ]
    return "\n".join(parts)


def escape(text: str) -> str:
    """A text as HTML, with control characters as escapes."""
    return escape_html(printable(text, TEXT_MAX))


def ago(seconds: float) -> str:
    """A duration in its two largest units."""
    rest = max(0, int(seconds))
    if rest < 60:
        return f"{rest} s"
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if rest >= size:
            return f"{rest // size} {unit} {rest % size // part} {below}"
    return ""


def size(count: float) -> str:
    """Bytes, in a unit that suits."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _badge(kind: str, text: str) -> str:
    """``kind``: good, bad, warn or dim; a word of ours. ``text`` is escaped."""
    return f'<span class="badge {kind}">{escape(text)}</span>'


def _verdict(reasons: dict[str, str]) -> str:
    return _badge("bad", "not ready") if reasons else _badge("good", "ready")


def _place(snapshot: Snapshot) -> str:
    head = snapshot.head
    if head is None:
        return ""
    role = _badge("lead", "leader") if head.leader else ""
    nodes = sum(len(segment.hostnames) for segment in snapshot.segments)
    numbers = ((nodes, "node"), (len(snapshot.segments), "segment"), (len(snapshot.peers), "peer"))
    counts = ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for number, word in numbers)
    return f"{role}<span>{escape(head.location)}</span><span>{counts}</span>"


def _section(title: str, *content: str, note: str = "") -> Iterator[str]:
    yield f"<section><h2>{title}</h2>"
    yield note
    yield from content
    yield "</section>"


def _table(columns: str, rows: Iterable[list[str]], none: str) -> str:
    """Cells are HTML. Rows above ROWS_MAX are counted, not shown."""
    kept = list(rows)
    if not kept:
        return f'<p class="none">{none}</p>'
    head = "".join(f"<th>{name}</th>" for name in columns.split("|"))
    body = "\n".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in kept[:ROWS_MAX])
    more = f'<p class="none">and {len(kept) - ROWS_MAX} more</p>' if len(kept) > ROWS_MAX else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f'<div class="wide">{table}</div>{more}'


def _mono(*texts: str) -> str:
    shown = "<br>".join(f"<code>{escape(text)}</code>" for text in texts[:CELL_MAX] if text)
    more = f"<br><small>and {len(texts) - CELL_MAX} more</small>" if len(texts) > CELL_MAX else ""
    return shown + more


def _age_note(snapshot: Snapshot, worker: str) -> str:
    """A warning where what follows comes from a worker that is not heard."""
    view = snapshot.workers.get(worker, WorkerView(worker))
    if view.alive:
        return ""
    heard = f"has not been heard for {ago(view.age)}" if view.state else "has not been heard yet"
    return f'<p class="stale">{worker} {heard}: this may be out of date.</p>'


def _troubles(snapshot: Snapshot, reasons: dict[str, str]) -> Iterator[str]:
    note = _age_note(snapshot, "watcher")
    if snapshot.problems is None and not note:
        note = '<p class="stale">The watcher has not read the cluster yet.</p>'
    none = "Nothing that is known." if note else "Nothing."
    rows = [[_badge("bad", "not ready"), escape(name), escape(why), ""] for name, why in reasons.items()]
    for name, view in snapshot.workers.items():
        for key, failure in sorted(view.state.failing.items() if view.state else ()):
            text = f"{escape(failure.message)} <small>{escape(key)}</small>"
            rows.append([_badge("bad", "failing"), escape(name), text, _since(snapshot, failure.since)])
    for problem in sorted((snapshot.problems or {}).values(), key=lambda p: (p.kind, p.name, p.field)):
        who = f"{escape(problem.kind)} {escape(problem.name)}"
        why = f"{_mono(problem.field)} {escape(problem.reason)}"
        rows.append([_badge("warn", "left out"), who, why, _since(snapshot, problem.since)])
    yield from _section("What does not work", _table("|Who|What|Since", rows, none), note=note)


def _since(snapshot: Snapshot, since: int) -> str:
    return f'<span title="{_utc(since)}">{ago(snapshot.at - since)}</span>'


def _workers(snapshot: Snapshot) -> Iterator[str]:
    rows = [_worker(snapshot, view) for view in snapshot.workers.values()]
    columns = "Worker||Last heard|Up for|PID|CPU|Memory|Files|Errors|Says"
    yield from _section("Workers", _table(columns, rows, "None."))


def _worker(snapshot: Snapshot, view: WorkerView) -> list[str]:
    state = view.state
    if state is None:
        return [escape(view.name), _badge("bad", "never heard"), *[""] * 8]
    phase = _badge("good" if state.phase == "ready" else "warn", state.phase)
    if not view.alive:
        phase = _badge("bad", "stale") + f" <small>was {escape(state.phase)}</small>"
    errors = ", ".join(f"{escape(event)} {number}" for event, number in sorted(state.errors.items()))
    info = "<br>".join(f"{escape(key)}: {escape(text)}" for key, text in sorted(state.info.items()))
    return [
        escape(view.name),
        phase,
        f"{ago(view.age)} ago",
        ago(snapshot.at - state.started) if view.alive else "",
        str(state.pid),
        f"{state.cpu_seconds:.1f} s",
        size(state.resident_bytes),
        str(state.open_fds),
        errors,
        f"<small>{info}</small>",
    ]


def _graph(snapshot: Snapshot, drawable: bool) -> Iterator[str]:
    if not snapshot.segments:
        yield from _section("Graph", '<p class="none">There is no topology yet.</p>')
        return
    formats = " ".join(f'<a href="/graph?format={name}">{name}</a>' for name in ("svg", "png", "dot", "json"))
    picture = '<p class="none">Too large to draw here, or graphviz is not installed.</p>'
    if drawable:
        source = f"/graph?v={snapshot.topology_version}"
        picture = f'<a href="/graph"><img class="graph" src="{source}" alt="the mesh as a graph"></a>'
    yield from _section("Graph", picture, f"<p>{formats}</p>", note=_age_note(snapshot, "mesh"))


def _segments(snapshot: Snapshot) -> Iterator[str]:
    rows = [_segment(snapshot, s) for s in sorted(snapshot.segments, key=lambda s: s.location)]
    columns = "Segment|Leader|Nodes|WireGuard address|Endpoint|Allowed IPs|Keepalive|Last handshake"
    note = _age_note(snapshot, "mesh")
    yield from _section("Segments", _table(columns, rows, "There is no topology yet."), note=note)


def _segment(snapshot: Snapshot, segment: Segment) -> list[str]:
    own = snapshot.head is not None and segment.location == snapshot.head.location
    return [
        escape(segment.location),
        escape(segment.hostnames[segment.leader]),
        str(len(segment.hostnames)),
        _mono(segment.wireguard_ip),
        _mono(str(segment.endpoint)) if segment.endpoint else "",
        _mono(*segment.allowed_ips, *segment.allowed_location_ips),
        f"{segment.persistent_keepalive} s" if segment.persistent_keepalive else "",
        _badge("dim", "this segment") if own else _segment_handshake(snapshot, segment),
    ]


def _segment_handshake(snapshot: Snapshot, segment: Segment) -> str:
    if segment.key_lost:
        return _badge("warn", "another has its key")
    return _handshake(snapshot, segment.key)


def _nodes(snapshot: Snapshot) -> Iterator[str]:
    rows = []
    for segment in sorted(snapshot.segments, key=lambda s: s.location):
        for i, name in enumerate(segment.hostnames):
            leads = i == segment.leader
            badges = _badge("lead", "leader") if leads else ""
            if snapshot.head is not None and name == snapshot.head.hostname:
                badges += _badge("dim", "this node")
            private = segment.private_ips[i] if segment.private_ips else ""
            wireguard = segment.wireguard_ip if leads else ""
            cells = [_mono(segment.cidrs[i]), _mono(private), _mono(wireguard)]
            rows.append([escape(name), badges, escape(segment.location), *cells])
    columns = "Node||Segment|Pod CIDR|Internal address|WireGuard address"
    note = _age_note(snapshot, "mesh")
    yield from _section("Nodes", _table(columns, rows, "There is no topology yet."), note=note)


def _handshake(snapshot: Snapshot, key: str) -> str:
    state = (snapshot.wireguard or {}).get(key)
    if state is None:
        return _badge("dim", "not configured here")
    if not state.last_handshake:
        return _badge("warn", "none yet")
    age = snapshot.at - state.last_handshake
    text = f"{ago(age)} ago"
    netctl = snapshot.workers.get("netctl")
    if netctl is None or not netctl.alive:
        return _badge("dim", text)
    return _badge("good" if age <= SESSION else "dim", text)


def _wireguard(snapshot: Snapshot) -> Iterator[str]:
    names = peer_names(snapshot)
    kept = keepers((snapshot.topology or {}).values())
    known = dict(snapshot.wireguard or {})
    for key, item in kept.items():
        if isinstance(item, PeerView):
            known.setdefault(key, WireGuardPeerState(key))
    rows = []
    for key, state in sorted(known.items(), key=lambda item: (names.get(item[0], "~"), item[0])):
        keeper = kept.get(key)
        kind = "unknown" if keeper is None else "peer" if isinstance(keeper, PeerView) else "node"
        allowed = keeper.allowed_ips if keeper else ()
        endpoint = state.endpoint_ip and f"{state.endpoint_ip} port {state.endpoint_port}"
        traffic = [size(state.received_bytes), size(state.sent_bytes)]
        who = [escape(names.get(key, "")), kind, _mono(key), _mono(*allowed), _mono(endpoint)]
        rows.append([*who, _handshake(snapshot, key), *traffic])
    columns = "Name|Kind|Public key|Allowed IPs|Endpoint|Last handshake|Received|Sent"
    note = _age_note(snapshot, "netctl")
    if snapshot.host is not None:
        kind = escape(snapshot.host.wireguard or "not there yet")
        note += f"<p>WireGuard: {kind}. This host's key: {_mono(snapshot.host.public_key)}</p>"
    yield from _section("WireGuard peers", _table(columns, rows, "None."), note=note)
