"""The CNI directory on disk: reading, replacing by rename, and who else is there.

Only the file asked for and a temporary file beside it are ever touched. A reader of the directory
sees the old file or the new one, never a part: the temporary file's name does not end in what the
container runtime reads. A symbolic link is followed, and the file that it names is replaced in
that file's own directory, so that the link stays. Used by kilo.cni.worker alone.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass

from kilo.errors import ProtocolError, TemporaryError

READ_BY_RUNTIME = (".conf", ".conflist", ".json")
SIZE_MAX = 1 << 20
NEW_MODE = 0o644
_SETTLED = 2.0
"""Seconds after which a change leaves another timestamp, on any file system's clock."""


@dataclass(frozen=True)
class Version:
    """What tells one content of a file from the next without reading it."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


@dataclass(frozen=True)
class Found:
    """A file as read: its content, the version, and what a replacement must keep.

    ``settled``: a later change is sure to show in the version.
    """

    content: bytes
    version: Version
    mode: int
    owner: int
    group: int
    settled: bool


def target_of(path: str) -> str:
    """The file that ``path`` names, through symbolic links. Raises TemporaryError for a loop."""
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError:
        return os.path.realpath(path)
    except OSError as e:
        raise _failed("cannot follow", path, e) from e


def version_of(path: str) -> Version | None:
    """The version of the file now, None if there is none. Raises TemporaryError."""
    try:
        return _version(os.stat(path))
    except FileNotFoundError:
        return None
    except OSError as e:
        raise _failed("cannot read", path, e) from e


def read(path: str) -> Found | None:
    """The file, None if there is none. Raises TemporaryError; ProtocolError for what is no plain file."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for somebody to write to it.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise _failed("cannot read", path, e) from e
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ProtocolError("not a regular file")
        if status.st_size > SIZE_MAX:
            raise ProtocolError(f"larger than {SIZE_MAX} bytes")
        content = _read_all(fd)
    except OSError as e:
        raise _failed("cannot read", path, e) from e
    finally:
        os.close(fd)
    return Found(
        content=content,
        version=_version(status),
        mode=stat.S_IMODE(status.st_mode),
        owner=status.st_uid,
        group=status.st_gid,
        settled=time.time() - status.st_ctime > _SETTLED,
    )


def replace(path: str, content: bytes, old: Found | None) -> None:
    """Put ``content`` in the place of ``old``, or of nothing, durably; mode and owner stay.

    Raises TemporaryError, also where somebody else changed the file since it was read.
    """
    temporary = temporary_of(path)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _fill(fd, content, old, path)
            if version_of(path) != (old.version if old else None):
                raise TemporaryError(f"{path} was changed by somebody else meanwhile")
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(fd)
        _sync_directory(os.path.dirname(path))
    except OSError as e:
        raise _failed("cannot write", path, e) from e


def remove_leftover(path: str) -> None:
    """Remove the temporary file of an earlier run that was killed while it wrote."""
    with contextlib.suppress(OSError):
        os.unlink(temporary_of(path))


def temporary_of(path: str) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.kilo-tmp")


def before(path: str) -> list[str]:
    """Names of the directory's other configurations that the container runtime prefers to ``path``.

    It uses the first in the order of their names. Raises TemporaryError.
    """
    directory, own = os.path.split(path)
    try:
        names = os.listdir(directory)
    except OSError as e:
        raise _failed("cannot read", directory, e) from e
    return sorted(name for name in names if name < own and name.endswith(READ_BY_RUNTIME))


def _read_all(fd: int) -> bytes:
    chunks = []
    size = 0
    while chunk := os.read(fd, 1 << 16):
        chunks.append(chunk)
        size += len(chunk)
        if size > SIZE_MAX:
            raise ProtocolError(f"larger than {SIZE_MAX} bytes")
    return b"".join(chunks)


def _fill(fd: int, content: bytes, old: Found | None, path: str) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    if old is not None:
        mine = os.fstat(fd)
        if (mine.st_uid, mine.st_gid) != (old.owner, old.group):
            try:
                os.fchown(fd, old.owner, old.group)
            except PermissionError as e:
                raise TemporaryError(
                    f"cannot keep {path} owned by {old.owner}:{old.group}: not allowed"
                ) from e
    os.fchmod(fd, old.mode if old else NEW_MODE)
    os.fsync(fd)


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _version(status: os.stat_result) -> Version:
    return Version(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _failed(what: str, path: str, error: OSError) -> TemporaryError:
    return TemporaryError(f"{what} {path}: {error.strerror} (errno {error.errno})")
