"""Where subscribers come in: a listening socket in a directory of the producer's, and who is connected.

libzmq's own listener is not used. It aborts the process where descriptors run out, and it takes in and keeps
whatever a subscriber says, within one call, for as long as that goes on. Here all of it is bounded, for each
user by itself: connections, what is waiting to be read, how often one may ask; and a pass of the loop does a
bounded part of the work. Whoever exceeds his bounds is cut off, and others do not notice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from kilo.bus.loop import Loop, Timer
from kilo.bus.zmtp import GREETING, MOST_SAID, READY, Caller, framed
from kilo.errors import PermanentError, ProtocolError, TemporaryError
from kilo.model.workers import IDS
from kilo.sockets import take_no_descriptors

BACKLOG = 1024
"""Connections that wait to be taken in, in the order in which they came."""
ACCEPTED = 256
"""Connections taken in within ``PERIOD``; most of a crowd's are closed at once, so this bounds the work."""
AT_ONCE = 32
"""The same within one pass of the loop."""
PERIOD = 1.0
MOST_CONNECTIONS = 32
"""Of one user. An agent has about eight, where all its workers are one user; ``kg tail`` has one a topic."""
MOST_QUEUED = 8 << 20
"""Bytes that wait for one user's connections, beside one message for each: what comes then is lost to
those who have not taken what they were sent before, which they notice by its number."""
MOST_WAITING = 2000
"""Pieces that wait for one connection; a message is two."""
MOST_GROUPS = 256
HANDSHAKE = 3.0
"""Seconds within which who was taken in has introduced himself: what says nothing keeps others of its user
out. libzmq needs milliseconds; who was too slow is there again 50 ms after he was cut off."""
READ = 4096
PIECES = 64
LINGER = 0.2
_SO_PEERGROUPS = 59
_OF_WORKERS = frozenset(IDS.values())
_CREDENTIALS = struct.Struct("=3i")


class User:
    """Who is connected, as the kernel tells it, and what all connections of his have together.

    User 0 is several: netctl and cni, which are told apart by the groups of workers that they are in.
    """

    __slots__ = ("connections", "groups", "queued", "uid")

    def __init__(self, uid: int, groups: frozenset[int]) -> None:
        self.uid = uid
        self.groups = groups
        self.connections = 0
        self.queued = 0

    def may_be(self, worker: str) -> bool:
        """Whether it is the worker, or root, or of the same user as this process.

        Root is in groups of no worker, or in this one's too. Where workers have no users or groups of their
        own, all may be any.
        """
        if self.uid == 0:
            return not self.groups or IDS[worker] in self.groups
        return self.uid in (IDS[worker], os.geteuid())


class Reader:
    """One connection. ``wanted``: topics it asked for; ``given``: those of which it was sent the whole."""

    __slots__ = ("caller", "given", "queue", "said", "since", "socket", "user", "wanted")

    def __init__(self, connection: socket.socket, user: User) -> None:
        self.socket = connection
        self.user = user
        self.caller = Caller()
        self.queue: deque[memoryview] = deque()
        self.wanted: set[bytes] = set()
        self.given: set[bytes] = set()
        self.said = 0
        self.since = 0.0


class Door:
    """See the module. ``on_wanted`` is called with each topic that a reader asks for, and says whether there
    is such a one: others are not remembered.

    Raises PermanentError if it cannot be bound, TemporaryError while another process of this worker
    runs there: it would be unheard from then on.
    """

    def __init__(self, loop: Loop, path: Path, worker: str, on_wanted: Callable[[bytes], bool]) -> None:
        self.refused = 0
        """Connections that were not taken in, or were cut off."""
        self._loop = loop
        self._path = path
        self._worker = worker
        self._on_wanted = on_wanted
        self._readers: dict[int, Reader] = {}
        self._users: dict[tuple[int, frozenset[int]], User] = {}
        self._strangers: dict[Reader, float] = {}
        """Whose handshake is under way, and until when it may be: who came first is first."""
        self._next_cut: Timer | None = None
        """Due when the first of them is, or soon before; none while there are none."""
        self._accepted = 0
        self._since = 0.0
        self._lock = self._prepare()
        self._listener = self._listen()
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        loop.add_reader(self._epoll.fileno(), self._serve)
        loop.at_close(self._close)

    # Where it is.

    def _prepare(self) -> int:
        """Make the directory, and lock it for as long as the loop lives. The lock's descriptor."""
        path = self._path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(path.with_name("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise PermanentError(f"cannot prepare the bus socket {path}: {e.strerror}") from e
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except OSError as e:
            os.close(lock)
            if not isinstance(e, BlockingIOError):
                raise PermanentError(f"cannot prepare the bus socket {path}: {e.strerror}") from e
            raise TemporaryError(
                f"another {self._worker} runs here: it holds {path.parent}; end it, or give another --run-dir"
            ) from e
        return lock

    def _listen(self) -> socket.socket:
        """Nobody can connect before the mode is what it is to be."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            take_no_descriptors(listener)
            listener.bind(str(self._path))
            os.chmod(self._path, 0o660)
            listener.listen(BACKLOG)
            self._number = _number_of(self._path)
        except OSError as e:
            listener.close()
            raise PermanentError(f"cannot bind the bus socket {self._path}: {e}") from e
        return listener

    def look_after(self) -> None:
        """Bind again if somebody removed the socket's file: who is connected stays so, and others can come.

        Raises TemporaryError if it cannot, as when another process took the place meanwhile.
        """
        if _number_of(self._path) == self._number:
            return
        try:
            if _number_of(self._path.with_name("lock")) != os.fstat(self._lock).st_ino:
                lock = self._prepare()
                os.close(self._lock)
                self._lock = lock
            listener = self._listen()
        except PermanentError as e:
            raise TemporaryError(str(e)) from e
        self._listener.close()
        self._listener = listener
        self._epoll.register(listener, select.EPOLLIN)

    def _close(self) -> None:
        """Readers may take what they were sent last for ``LINGER`` seconds together."""
        end = time.monotonic() + LINGER
        for reader in self._readers.values():
            with contextlib.suppress(OSError):
                reader.socket.settimeout(max(end - time.monotonic(), 0.001))
                for piece in reader.queue:
                    reader.socket.sendall(piece)
            reader.socket.close()
        self._readers.clear()
        self._listener.close()
        self._epoll.close()
        os.close(self._lock)

    # Who comes, and what they say.

    def _serve(self) -> None:
        listening = self._listener.fileno()
        for fd, events in self._epoll.poll(0, AT_ONCE):
            if fd == listening:
                self._accept()
            elif (reader := self._readers.get(fd)) is not None:
                try:
                    if events & select.EPOLLOUT:
                        self._write(reader)
                    if events & ~select.EPOLLOUT:
                        self._read(reader)
                except (OSError, ProtocolError):
                    self._drop(reader)

    def _accept(self) -> None:
        now = time.monotonic()
        if now - self._since >= PERIOD:
            self._since, self._accepted = now, 0
        for _ in range(AT_ONCE):
            if self._accepted >= ACCEPTED:
                self._pause()
                return
            try:
                connection, _ = self._listener.accept()
            except OSError as e:
                if e.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR):
                    self._pause()  # no descriptors, or no memory
                return
            self._accepted += 1
            try:
                self._admit(connection)
            except OSError:
                connection.close()

    def _pause(self) -> None:
        """Take nobody in for a while. They wait in the kernel."""
        self._epoll.unregister(self._listener)
        paused = self._listener

        def go_on() -> None:
            if paused is self._listener:
                self._epoll.register(paused, select.EPOLLIN)

        self._loop.call_later(PERIOD, go_on)

    def _admit(self, connection: socket.socket) -> None:
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        who = int(_CREDENTIALS.unpack(found)[1]), groups_of(connection) & _OF_WORKERS
        user = self._users.setdefault(who, User(*who))
        if user.connections >= MOST_CONNECTIONS:
            self.refused += 1
            connection.close()
            return
        connection.setblocking(False)
        connection.send(GREETING)
        self._epoll.register(connection, select.EPOLLIN)
        user.connections += 1
        reader = self._readers[connection.fileno()] = Reader(connection, user)
        self._strangers[reader] = time.monotonic() + HANDSHAKE
        if self._next_cut is None:
            self._next_cut = self._loop.call_later(HANDSHAKE, self._cut_strangers)

    def _cut_strangers(self) -> None:
        """Drop those whose time is over. One timer serves all."""
        now = time.monotonic()
        for reader in [reader for reader, due in self._strangers.items() if due <= now]:
            self.refused += 1
            self._drop(reader)
        if self._strangers:
            first = next(iter(self._strangers.values()))
            self._next_cut = self._loop.call_later(first - now, self._cut_strangers)

    def _no_stranger(self, reader: Reader) -> None:
        """Who is none any more is not waited for."""
        self._strangers.pop(reader, None)
        if not self._strangers and self._next_cut is not None:
            self._next_cut.cancel()
            self._next_cut = None

    def _drop(self, reader: Reader) -> None:
        self._no_stranger(reader)
        del self._readers[reader.socket.fileno()]
        self._epoll.unregister(reader.socket)
        reader.socket.close()
        reader.wanted.clear()
        user = reader.user
        user.connections -= 1
        user.queued -= sum(map(len, reader.queue))
        if not user.connections:
            del self._users[user.uid, user.groups]

    def _read(self, reader: Reader) -> None:
        """Raises OSError where there is nobody any more, ProtocolError for who is to be cut off."""
        try:
            data = reader.socket.recv(READ)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError
        caller = reader.caller
        greeted = caller.greeted
        try:
            messages = caller.hear(data)
            self._count(reader, len(messages))
        except ProtocolError:
            self.refused += 1
            raise
        if caller.greeted and not greeted:
            self._push(reader, (READY,))
        if caller.ready:
            self._no_stranger(reader)
        for message in messages:
            topic = message[1:]
            if message[:1] == b"\x00":
                reader.wanted.discard(topic)
            elif message[:1] == b"\x01" and self._on_wanted(topic):
                reader.wanted.add(topic)
                reader.given.discard(topic)

    def _count(self, reader: Reader, messages: int) -> None:
        now = time.monotonic()
        if now - reader.since >= PERIOD:
            reader.since, reader.said = now, 0
        reader.said += messages
        if reader.said > MOST_SAID:
            raise ProtocolError("it asks too often")

    # What they are told.

    def readers(self, topic: bytes) -> list[Reader]:
        """Who wants the topic."""
        return [reader for reader in self._readers.values() if topic in reader.wanted]

    def send(self, topic: bytes, body: bytes, readers: Iterable[Reader]) -> list[Reader]:
        """Send a message to each of ``readers``: those to whom it goes. To others it is lost, who have not
        taken what they were sent before."""
        pieces = (framed(topic, body), body)
        return [reader for reader in readers if self._push(reader, pieces)]

    def _push(self, reader: Reader, pieces: tuple[bytes, ...]) -> bool:
        """Send, and keep what the kernel does not take. Whether there was room."""
        queue, user = reader.queue, reader.user
        sent = 0
        if queue:
            if user.queued >= MOST_QUEUED or len(queue) >= MOST_WAITING:
                return False
        else:  # there is room for one message, whatever others of this user have left lying
            try:
                sent = reader.socket.sendmsg(pieces)
            except BlockingIOError:
                pass
            except OSError:  # gone: that is read next
                return False
        if sent == sum(map(len, pieces)):
            return True
        if not queue:
            self._epoll.modify(reader.socket, select.EPOLLIN | select.EPOLLOUT)
        for piece in pieces:
            if sent < len(piece):
                queue.append(memoryview(piece)[sent:])
                user.queued += len(piece) - sent
            sent = max(0, sent - len(piece))
        return True

    def _write(self, reader: Reader) -> None:
        """Send of what waits as much as the kernel takes. Raises OSError where there is nobody any more."""
        queue, user = reader.queue, reader.user
        while queue:
            try:
                sent = reader.socket.sendmsg(list(itertools.islice(queue, PIECES)))
            except BlockingIOError:
                return
            user.queued -= sent
            while sent and sent >= len(queue[0]):
                sent -= len(queue.popleft())
            if sent:
                queue[0] = queue[0][sent:]
        self._epoll.modify(reader.socket, select.EPOLLIN)


def groups_of(connection: socket.socket) -> frozenset[int]:
    """The further groups of who connected, as they were then. None for who is in more than a worker ever is,
    and before Linux 4.13."""
    try:
        found = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * MOST_GROUPS)
    except OSError:
        return frozenset()
    return frozenset(struct.unpack(f"={len(found) // 4}I", found))


def _number_of(path: Path) -> int:
    """The inode, 0 if there is no such file."""
    with contextlib.suppress(OSError):
        return path.lstat().st_ino
    return 0
