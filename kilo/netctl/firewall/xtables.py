"""The legacy xtables in the kernel: read by socket option, written by one libiptc commit a table.

Reading asks for the raw table (IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES), since a libiptc handle of the
whole table costs far more and is needed for writing alone. Writing goes through python-iptables,
which is imported at the first write. libiptc carries the rules and counters of others over as they
are. Both work on the network namespace of the calling thread.
Called by legacy, sets and tables of kilo.netctl.firewall.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from kilo.errors import KiloError, TemporaryError
from kilo.netctl.firewall.edits import Create, Delete, Drop, Edit, Flush, Insert
from kilo.netctl.firewall.layout import (
    FAMILIES,
    Family,
    Info,
    Table,
    block_request,
    chains_called,
    entries_of,
    info_request,
    pack,
    parse_info,
    parse_table,
)

GET_INFO, GET_ENTRIES = 64, 65
_SO_IP_SET, _OP_GET_BYNAME, _IPSET_PROTOCOL, _NO_INDEX = 83, 6, 6, 65535
_REQUEST_INDEX = struct.Struct("@II32s")
_REVISION = struct.Struct("@29sB")
_TRIES = 5
_MODULES = {4: "iptable_", 6: "ip6table_"}

_getsockopt = ctypes.CDLL(None, use_errno=True).getsockopt


class TableMissing(KiloError):
    """The kernel has no such table, and could not load it."""


def read_table(version: int, name: str) -> Table:
    """The rules of table ``name``. The kernel makes a table that this namespace has not used yet.

    Raises TableMissing, or TemporaryError where the kernel refuses.
    """
    return parse_table(FAMILIES[version], *raw_table(version, name))


def chain_names(version: int, name: str, prefix: str) -> set[str]:
    """The chains of table ``name`` whose names begin with ``prefix``. Makes and raises as read_table."""
    return set(chains_called(entries_of(raw_table(version, name)[1]), prefix))


def raw_table(version: int, name: str) -> tuple[Info, bytearray]:
    """Table ``name`` as the kernel gives it, for layout to read. Makes and raises as read_table."""
    family = FAMILIES[version]
    with _socket(family) as sock:
        for _ in range(_TRIES):
            request = info_request(name)
            error = _ask_tables(sock, family, GET_INFO, request)
            if error in (errno.ENOENT, errno.ENOPROTOOPT):
                raise TableMissing(
                    f"the kernel has no table {name} for IPv{version} (module {_MODULES[version]}{name})"
                )
            if not error:
                info = parse_info(request)
                block = block_request(name, info.size)
                error = _ask_tables(sock, family, GET_ENTRIES, block)
                if not error:
                    return info, block
            if error != errno.EAGAIN:  # which says that the table grew in between
                break
        raise TemporaryError(f"reading table {name} for IPv{version}: {os.strerror(error)}")


def is_in_use(version: int, name: str) -> bool:
    """Whether this namespace has the table: reading it otherwise would be what makes it."""
    try:
        with open(f"/proc/thread-self/net/{FAMILIES[version].names_file}", encoding="ascii") as f:
            return name in f.read().split()
    except FileNotFoundError:
        return False
    except OSError:
        return True


def has_family(version: int) -> bool:
    """Whether the kernel speaks this IP version at all."""
    try:
        socket.socket(FAMILIES[version].socket_family, socket.SOCK_DGRAM).close()
    except OSError as e:
        return e.errno != errno.EAFNOSUPPORT
    return True


def has_match(version: int, name: str, revision: int) -> bool:
    """Whether the kernel has this revision of a match, or could load it. Raises TemporaryError."""
    family = FAMILIES[version]
    with _socket(family) as sock:
        error = _ask_tables(
            sock, family, family.revision_option, bytearray(_REVISION.pack(name.encode(), revision))
        )
    if error in (errno.ENOENT, errno.EPROTONOSUPPORT):
        return False
    if error not in (0, errno.ENOPROTOOPT):  # no xtables at all: that will be told of the tables
        raise TemporaryError(f"asking for the match {name}: {os.strerror(error)}")
    return True


def set_index(name: str) -> int:
    """The number by which rules refer to an ipset. Raises TemporaryError if there is no such set."""
    with _socket(FAMILIES[4]) as sock:
        request = bytearray(_REQUEST_INDEX.pack(_OP_GET_BYNAME, _IPSET_PROTOCOL, name.encode()))
        error = _ask(sock, socket.SOL_IP, _SO_IP_SET, request)
    (index,) = struct.unpack_from("@H", request, 8)
    if error or index == _NO_INDEX:
        raise TemporaryError(f"no index of ipset {name}: {os.strerror(error or errno.ENOENT)}")
    return int(index)


def _socket(family: Family) -> socket.socket:
    try:
        return socket.socket(family.socket_family, socket.SOCK_DGRAM)
    except OSError as e:
        raise TemporaryError(f"no socket for IPv{family.version}: {e.strerror}") from e


def _ask_tables(sock: socket.socket, family: Family, option: int, buffer: bytearray) -> int:
    """As _ask; where the kernel knows no xtables yet, iptc is imported first, which runs modprobe."""
    error = _ask(sock, family.level, option, buffer)
    if error == errno.ENOPROTOOPT and "iptc" not in sys.modules:
        _import_iptc()
        error = _ask(sock, family.level, option, buffer)
    return error


def _ask(sock: socket.socket, level: int, option: int, buffer: bytearray) -> int:
    """getsockopt with a buffer that also carries the question; 0 or the error's number."""
    length = ctypes.c_uint32(len(buffer))
    start = ctypes.c_char.from_buffer(buffer)
    if _getsockopt(sock.fileno(), level, option, ctypes.byref(start), ctypes.byref(length)) == 0:
        return 0
    return ctypes.get_errno()


def commit(version: int, name: str, edits: Iterable[Edit]) -> None:
    """Make ``edits`` to a table, all of them at once.

    Raises TemporaryError if the kernel refuses, in which case nothing has changed; or, after the
    rest has been done, if a chain cannot be removed because somebody's rule still jumps to it.
    """
    iptc = _import_iptc()
    binding = iptc.ip4tc.iptc if version == 4 else iptc.ip6tc.ip6tc
    table = None
    held: list[str] = []
    try:
        table = (iptc.Table if version == 4 else iptc.Table6)(name, autocommit=False)
        table.refresh()
        for edit in edits:
            _edit(binding, table, FAMILIES[version], edit, held)
        table.commit()
    except iptc.IPTCError as e:
        raise TemporaryError(_plain(e)) from e
    finally:
        if table is not None:
            table.close()
    if held:
        raise TemporaryError(f"rules of others still jump to {', '.join(held)}, now empty")


def _edit(binding: Any, table: Any, family: Family, edit: Edit, held: list[str]) -> None:
    if isinstance(edit, Create):
        table.create_chain(edit.chain)
    elif isinstance(edit, Insert):
        entry = ctypes.create_string_buffer(pack(family, edit.entry))
        table.insert_entry(edit.chain, entry, edit.position)
    elif isinstance(edit, Delete):
        # By number, which Table has no method for: by content might hit a twin of somebody else's.
        handle = table._handle
        if binding.iptc_delete_num_entry(edit.chain.encode(), edit.position, handle) != 1:
            raise _import_iptc().IPTCError(f"can't delete rule {edit.position} of {edit.chain}")
    elif isinstance(edit, Flush):
        table.flush_entries(edit.chain)
    elif isinstance(edit, Drop):
        try:
            table.delete_chain(edit.chain)
        except _import_iptc().IPTCError:
            held.append(edit.chain)


def _plain(error: Exception) -> str:
    """The text of an error of iptc's, in which libiptc's own part is printed as bytes."""
    return str(error).replace("b'", "").replace('b"', "").rstrip("'\"")


def _import_iptc() -> Any:
    """python-iptables. Raises TemporaryError if it, or a library of iptables that it needs, is missing."""
    if "iptc" in sys.modules:
        return sys.modules["iptc"]
    try:
        with _sober_import():
            import iptc
    except (ImportError, OSError, AttributeError, TypeError) as e:  # without a library
        raise TemporaryError(f"python-iptables cannot be used: {type(e).__name__}: {e}") from e
    return iptc


_LIBRARIES = {
    "c": ("libc.so.6",),
    "ip4tc": ("libip4tc.so.2", "libip4tc.so.0"),
    "ip6tc": ("libip6tc.so.2", "libip6tc.so.0"),
    "xtables": ("libxtables.so.12",),
}


@contextlib.contextmanager
def _sober_import() -> Iterator[None]:
    """Have iptc find its libraries by their names.

    It would run ldconfig and a compiler a dozen times, and load setuptools in the name of distutils:
    a fifth of a second and 18 MB. The directory of iptables' extensions, without which it refuses to
    load, is not needed here. Its sources make the compiler of Python 3.12 warn on standard error.
    """
    import ctypes.util

    search = ctypes.util.find_library

    def find(name: str) -> str | None:
        for candidate in _LIBRARIES.get(name, ()):
            with contextlib.suppress(OSError):
                ctypes.CDLL(candidate)
                return candidate
        return search(name) if name in _LIBRARIES else None

    modules: dict[str, Any] = sys.modules
    distutils, given = modules.get("distutils"), "XTABLES_LIBDIR" in os.environ
    ctypes.util.find_library = find
    os.environ.setdefault("XTABLES_LIBDIR", os.devnull)
    modules["distutils"] = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ctypes.util.find_library = search
        if not given:
            del os.environ["XTABLES_LIBDIR"]
        if distutils is None:
            del modules["distutils"]
        else:
            modules["distutils"] = distutils
