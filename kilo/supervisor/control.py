"""The control socket: ``kg status``, ``kg restart`` and ``kg loglevel`` ask, the parent answers.

Only root may connect, and the group that ``--control-group`` names; no worker may, though some are user
0. A request is one line of JSON, of at most 4 kB, and so is the answer; a connection that is slow or talks
nonsense is closed and costs nobody else anything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from kilo.bus import Loop, Timer
from kilo.errors import KiloError, PermanentError, TemporaryError
from kilo.log import LEVELS, Logger
from kilo.model.host import Failure, WorkerState
from kilo.sandbox.profiles import SUPERVISOR, join_groups
from kilo.sockets import take_no_descriptors

MAX_REQUEST = 4096
MOST_TOLD = 16 << 10
"""Bytes of one worker's state: the kernel takes all of them at once."""
MAX_CLIENTS = 16
IDLE_LIMIT = 10.0
RESTART_LIMIT = 60.0


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """``command``: status, states, flags, restart or loglevel; ``worker``: a worker's name or ``all``;
    ``level``: for loglevel, one of LEVELS."""

    command: str
    worker: str = ""
    level: str = ""


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker as the parent sees it; ``uptime`` in seconds, ``state``: down, starting, ready or stopping."""

    worker: str
    pid: int
    state: str
    uptime: float
    restarts: int
    last_error: str


class Reply(msgspec.Struct, omit_defaults=True):
    """``error`` is for a person; ``seconds`` is how long a restart took; ``flags``: the fields of the Config
    that are not the defaults; ``states``: what workers said last; ``ages``: how long ago, in seconds."""

    error: str = ""
    workers: list[WorkerStatus] = []
    seconds: dict[str, float] = {}
    flags: dict[str, Any] = {}
    states: dict[str, WorkerState] = {}
    ages: dict[str, float] = {}


class Supervised(Protocol):
    """What the control socket needs of a worker's process."""

    name: str
    restarts: int
    last_error: str
    wanted: bool
    state: WorkerState | None
    heard: float

    @property
    def pid(self) -> int: ...
    @property
    def phase(self) -> str: ...
    @property
    def uptime(self) -> float: ...
    def restart(self) -> None: ...
    def set_level(self, level: str) -> None: ...


def control_path(run_dir: str) -> str:
    """Where the parent listens."""
    return str(Path(run_dir, "control.sock"))


class ControlServer:
    """Listens in ``run_dir``, for root and the members of ``group`` (its number). Raises PermanentError if it
    cannot, or another parent does."""

    def __init__(self, loop: Loop, run_dir: str, log: Logger, group: int | None = None) -> None:
        self._loop = loop
        self._group = group
        self._workers: Mapping[str, Supervised] = {}
        self._flags: dict[str, Any] = {}
        self._log = log
        self._clients: dict[socket.socket, _Client] = {}
        self._path = control_path(run_dir)
        self._socket = self._listen(self._path)
        self._number = os.lstat(self._path).st_ino

    @property
    def reachable(self) -> bool:
        """Whether the socket's file still is this one's."""
        with contextlib.suppress(OSError):
            return os.lstat(self._path).st_ino == self._number
        return False

    def listen_again(self) -> None:
        """Make the socket that somebody removed. Raises PermanentError if another parent listens there."""
        new = self._listen(self._path)
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = new
        self._number = os.lstat(self._path).st_ino
        self._loop.add_reader(new.fileno(), self._accept)

    def serve(self, workers: Mapping[str, Supervised], flags: dict[str, Any]) -> None:
        """Answer from now on, about these workers and with these flags."""
        self._workers, self._flags = workers, flags
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _listen(self, path: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe, contextlib.suppress(OSError):
                _connect(probe, path)
                raise PermanentError(f"another kg runs here: it answers on {path}; see --run-dir")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            take_no_descriptors(listener)
            mask = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(mask)
            self._give_away(path)
            listener.listen(MAX_CLIENTS)
        except OSError as e:
            raise PermanentError(f"cannot listen on {path}: {e.strerror or e}") from e
        return listener

    def _give_away(self, path: str) -> None:
        """Make it the socket of a user that nobody is, and of the group: netctl and cni are user 0, and are
        not to ask. Root passes over that, or is in the group. Raises OSError."""
        try:
            os.chown(path, SUPERVISOR, SUPERVISOR if self._group is None else self._group)
            os.chmod(path, 0o660)
        except OSError as e:
            # Not root, without CHOWN, or where that user does not exist: then it is for this user alone.
            if self._group is not None or e.errno not in (errno.EPERM, errno.EINVAL):
                raise

    def close(self) -> None:
        for client in list(self._clients.values()):
            self._drop(client)
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self.reachable:
            os.unlink(self._path)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            connection, _ = self._socket.accept()
            connection.setblocking(False)
            if len(self._clients) >= MAX_CLIENTS:
                connection.close()
                return
            client = _Client(connection, self._loop.call_later(IDLE_LIMIT, lambda: self._drop(client)))
            self._clients[connection] = client
            self._loop.add_reader(connection.fileno(), lambda: self._read(client))

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.connection, None) is None:
            return
        client.timer.cancel()
        self._loop.remove_reader(client.connection.fileno())
        client.connection.close()

    def _read(self, client: _Client) -> None:
        try:
            data = client.connection.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        if client.served:
            return  # what comes after a request is not looked at; that it is read tells when it ends
        client.received += data
        if b"\n" not in client.received and len(client.received) < MAX_REQUEST:
            return
        client.served = True
        try:
            request = msgspec.json.decode(client.received.partition(b"\n")[0], type=Request)
            self._serve(client, request)
        except (msgspec.DecodeError, KiloError) as e:
            self._answer(client, Reply(error=str(e)))

    def _serve(self, client: _Client, request: Request) -> None:
        if request.command == "status":
            self._answer(client, Reply(workers=[status_of(w) for w in self._workers.values()]))
        elif request.command == "states":
            self._answer(client, states_of(self._workers.values()))
        elif request.command == "flags":
            self._answer(client, Reply(flags=self._flags))
        elif request.command == "loglevel":
            self._set_level(request)
            self._answer(client, Reply())
        elif request.command == "restart":
            names = self._named(request)
            if not all(self._workers[n].wanted for n in names):
                raise TemporaryError("kg is ending here")
            client.timer.cancel()
            self._restart(client, names)
        else:
            raise TemporaryError(f"unknown command {request.command!r}")

    def _named(self, request: Request) -> list[str]:
        """Raises TemporaryError if there is no such worker."""
        names = list(self._workers) if request.worker == "all" else [request.worker]
        unknown = [n for n in names if n not in self._workers]
        if unknown:
            known = ", ".join(self._workers)
            raise TemporaryError(f"there is no worker {unknown[0]!r}; there are: {known}, all")
        return names

    def _set_level(self, request: Request) -> None:
        """Of workers; the parent's goes with ``all``."""
        if request.level not in LEVELS:
            raise TemporaryError(f"{request.level!r} is no level; there are: {', '.join(LEVELS)}")
        for name in self._named(request):
            self._workers[name].set_level(request.level)
        if request.worker == "all":
            self._log.level = request.level

    def _restart(self, client: _Client, names: list[str]) -> None:
        before = {name: self._workers[name].pid for name in names}
        begun = time.monotonic()
        seconds: dict[str, float] = {}
        for name in names:
            self._log.info("restart asked for", worker=name)
            self._workers[name].restart()

        def look() -> None:
            for name in names:
                worker = self._workers[name]
                if name not in seconds and worker.pid not in (0, before[name]) and worker.phase == "ready":
                    seconds[name] = round(time.monotonic() - begun, 3)
            late = time.monotonic() - begun > RESTART_LIMIT
            if len(seconds) == len(names) or late or client.connection not in self._clients:
                poll.cancel()
                waiting = ", ".join(_late(self._workers[n]) for n in names if n not in seconds)
                error = f"not ready after {RESTART_LIMIT:.0f} s: {waiting}" if waiting else ""
                self._answer(client, Reply(error=error, seconds=seconds))

        poll = self._loop.call_every(0.02, look)

    def _answer(self, client: _Client, reply: Reply) -> None:
        if client.connection in self._clients:
            with contextlib.suppress(OSError):
                client.connection.sendall(msgspec.json.encode(reply) + b"\n")
            self._drop(client)


class _Client:
    """A connection to the control socket."""

    def __init__(self, connection: socket.socket, timer: Timer) -> None:
        self.connection = connection
        self.timer = timer
        self.received = b""
        self.served = False


def _late(worker: Supervised) -> str:
    return f"{worker.name} ({worker.last_error})" if worker.last_error else worker.name


def status_of(worker: Supervised) -> WorkerStatus:
    """A worker's line in ``kg status``."""
    uptime = round(worker.uptime, 1)
    return WorkerStatus(worker.name, worker.pid, worker.phase, uptime, worker.restarts, worker.last_error)


def states_of(workers: Iterable[Supervised]) -> Reply:
    """What workers say of themselves, for those who may not hear the bus. One that has far too much to say is
    left out, and so counts as not heard."""
    now = time.monotonic()
    reply = Reply()
    for worker in workers:
        if worker.state is not None and (state := _shortened(worker.state)) is not None:
            reply.states[worker.name] = state
            reply.ages[worker.name] = round(now - worker.heard, 1)
    return reply


def _shortened(state: WorkerState) -> WorkerState | None:
    """A state of at most MOST_TOLD bytes; if that takes it, without what fails but that something does."""
    if len(msgspec.json.encode(state)) > MOST_TOLD and state.failing:
        since = min(failure.since for failure in state.failing.values())
        told = Failure(f"{len(state.failing)} things fail, too many to be told here; root is told", since)
        state = msgspec.structs.replace(state, failing={"more": told})
    return state if len(msgspec.json.encode(state)) <= MOST_TOLD else None


def _connect(connection: socket.socket, path: str) -> None:
    """As a member of the socket's group, if this process may join it: root in a container needs that."""
    with contextlib.suppress(OSError):
        join_groups(os.stat(path).st_gid)
    connection.connect(path)


def has_parent(run_dir: str) -> bool:
    """Whether somebody listens in ``run_dir``. A parent that was killed leaves its socket's file."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        try:
            _connect(connection, control_path(run_dir))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            pass  # no right to ask it, which it will say, or too busy
    return True


def ask(run_dir: str, request: Request, timeout: float = 5.0) -> Reply:
    """Ask the parent that runs in ``run_dir``. Raises TemporaryError if nobody answers."""
    path = control_path(run_dir)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(timeout)
        try:
            _connect(connection, path)
            connection.sendall(msgspec.json.encode(request) + b"\n")
            with connection.makefile("rb") as answer:
                line = answer.readline()
        except PermissionError as e:
            raise PermanentError(
                f"no right to ask the parent on {path}; only root may, and --control-group"
            ) from e
        except OSError as e:
            raise TemporaryError(f"no parent answers on {path}: {e.strerror or e}") from e
    try:
        return msgspec.json.decode(line, type=Reply)
    except msgspec.DecodeError as e:
        raise TemporaryError(f"the parent on {path} gave no answer") from e
