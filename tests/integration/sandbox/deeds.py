"""What the tests have done in processes of their own (see room.py): each returns what came of it.

``attempts`` gives, by name, "ok" or the errno with which the kernel refused.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from kilo.config import Config
from kilo.errors import PermanentError
from kilo.sandbox import Access, Profile, Result, Rule, enter, libc, seccomp
from kilo.sandbox.landlock import CREATE_RULESET
from kilo.sandbox.profile import Refusals, with_identity_as_it_is
from kilo.sandbox.profiles import code, profile_for
from kilo.sandbox.status import mask_of, read_status
from kilo.supervisor.child import give_up_privileges, run_worker

UID, GROUP = 11072, 11071
MACHINE = seccomp.ARCHITECTURES[os.uname().machine]
OWN = Access.READ | Access.WRITE | Access.MAKE
RUN = Access.READ | Access.EXECUTE
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/proc/self", "/dev/null", "/etc/ld.so.cache")


def profile(place: str, *more: Rule, **changes: Any) -> Profile:
    """Code, libraries, and ``place`` as its own."""
    rules = (*(Rule(p, Access.READ) for p in (*code(), *SYSTEM)), Rule(place, OWN), *more)
    values: dict[str, Any] = {"uid": UID, "gid": UID, "groups": (GROUP, UID), "rules": rules}
    return Profile(**values | changes)


def attempts(deeds: dict[str, Callable[[], object]]) -> dict[str, str]:
    found = {}
    for name, deed in deeds.items():
        try:
            deed()
            found[name] = "ok"
        except OSError as e:
            found[name] = errno.errorcode[e.errno or 0]
    return found


def told(result: Result) -> dict[str, Any]:
    """A result as JSON."""
    found: dict[str, Any] = msgspec.to_builtins(result)
    return found


def number_of(name: str) -> int:
    return (seccomp.DENIED | seccomp.PROCESSES)[name][MACHINE.column]


def connect(port: int) -> None:
    with socket.socket() as caller:
        caller.settimeout(5)
        caller.connect(("127.0.0.1", port))


def listen(port: int) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))


def call_abstract(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect("\0" + name)


def enters_and_waits(place: str) -> None:
    """Says what it ended up with, and stays until it is killed."""
    print(msgspec.json.encode(told(enter(profile(place)))).decode(), flush=True)
    signal.pause()


def tries_what_is_forbidden(place: str, port: int, secret: str) -> dict[str, str]:
    enter(profile(place))
    null = libc.memory_of(bytes(256))
    return attempts(
        {
            "list the root": lambda: os.listdir("/"),
            "read outside": lambda: open("/etc/hostname").close(),
            "read another's file": lambda: open(secret).close(),
            "write outside": lambda: open("/tmp/kgs-outside", "w").close(),
            "make a directory outside": lambda: os.mkdir("/tmp/kgs-outside"),
            "make a device": lambda: os.mknod(f"{place}/device", 0o20600, 0x103),
            "run a program": lambda: subprocess.run(["/usr/bin/true"], check=True),
            "connect": lambda: connect(port),
            "bind": lambda: listen(0),
            "signal": lambda: os.kill(os.getppid(), 0),
            "become root": lambda: os.setresuid(0, 0, 0),
            "become root's group": lambda: os.setresgid(0, 0, 0),
            "join a group": lambda: os.setgroups([0]),
            "raise a capability": lambda: libc.capset(1 << 12, 1 << 12, 0),
            "be a parent with a namespace": lambda: libc.syscall(MACHINE.clone, 0x10000000 | 17, 0, 0, 0, 0),
            "clone3": lambda: libc.syscall(435, null, 88),
        }
    )


def tries_what_is_its_own(place: str) -> dict[str, str]:
    enter(profile(place, Rule("/usr/bin/true", RUN), Rule("/lib64", RUN), Rule("/lib", RUN)))

    def bind() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{place}/bus.sock")
            listener.listen()
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect(f"{place}/bus.sock")

    def write() -> None:
        with open(f"{place}/.file", "w") as f:
            f.write("x")
        os.rename(f"{place}/.file", f"{place}/file")
        with open(f"{place}/file", "r+") as f:
            f.truncate()

    return attempts(
        {
            "write and rename": write,
            "list": lambda: os.listdir(place),
            "remove": lambda: os.unlink(f"{place}/file"),
            "bind": bind,
            "make a directory": lambda: os.mkdir(f"{place}/directory"),
            "remove it": lambda: os.rmdir(f"{place}/directory"),
            "look at itself": lambda: open("/proc/self/statm").close(),
            "its descriptors": lambda: os.listdir("/proc/self/fd"),
            "memory as a file": lambda: open(f"/proc/self/fd/{os.memfd_create('x')}").close(),
            "threads": lambda: threading.Thread(target=int).start(),
            "signal itself": lambda: os.kill(os.getpid(), 0),
            "run": lambda: subprocess.run(["/usr/bin/true"], check=True),
        }
    )


def tries_to_make_processes(place: str, processes: bool) -> dict[str, str]:
    """By each way that there is, with a program that it may read and start; and a thread."""
    programs = (Rule("/usr/bin", RUN), Rule("/lib64", RUN), Rule("/lib", RUN))
    enter(profile(place, *programs, processes=processes))
    nothing = libc.memory_of(b"/usr/bin/nothing\0")
    clone3 = libc.memory_of(struct.pack("=11Q", 0, 0, 0, 0, signal.SIGCHLD, *[0] * 6))

    def thread() -> None:
        done: list[bool] = []
        made = threading.Thread(target=done.append, args=(True,))
        made.start()
        made.join()
        assert done

    def child(make: Callable[[], int]) -> Callable[[], None]:
        """Who is answered 0 is the child, and ends."""

        def made() -> None:
            if not (pid := make()):
                os._exit(0)
            os.waitpid(pid, 0)

        return made

    deeds: dict[str, Callable[[], object]] = {
        "thread": thread,
        "fork of the library": child(os.fork),
        "clone": child(lambda: libc.syscall(MACHINE.clone, signal.SIGCHLD, 0, 0, 0, 0)),
        "clone with files": child(lambda: libc.syscall(MACHINE.clone, 0x400 | signal.SIGCHLD, 0, 0, 0, 0)),
        "clone3": lambda: libc.syscall(435, clone3, 88),
        "posix_spawn": lambda: os.waitpid(os.posix_spawn("/usr/bin/true", ["true"], {}), 0),
        "subprocess": lambda: subprocess.run(["/usr/bin/true"], check=True),
        "execve": lambda: os.execv("/usr/bin/nothing", ["nothing"]),
        "execveat": lambda: libc.syscall(number_of("execveat"), (1 << 64) - 1, nothing, 0, 0, 0),
        "thread after that": thread,
    }
    if (fork := number_of("fork")) >= 0:  # not on arm64
        deeds["fork"] = child(lambda: libc.syscall(fork))
    if (vfork := number_of("vfork")) >= 0 and not processes:  # where it is allowed it would ruin our stack
        deeds["vfork"] = lambda: libc.syscall(vfork)
    return attempts(deeds)


def forks_as(worker: str, place: str, sandbox: str) -> dict[str, str]:
    """Whether what a worker ends up with lets it leave another process behind, at each level."""
    config = Config(run_dir=place, sandbox=sandbox)
    give_up_privileges(config, profile_for(worker, config), ())

    def fork() -> None:
        if not (pid := os.fork()):
            os._exit(0)
        os.waitpid(pid, 0)

    return attempts({"fork": fork})


def subprocess_says(place: str) -> list[str]:
    """The exception of a program that may not be started, by name, and its text."""
    enter(profile(place, Rule("/usr/bin", RUN), Rule("/lib64", RUN), Rule("/lib", RUN), processes=False))
    try:
        subprocess.run(["/usr/bin/true"], check=True, capture_output=True)
    except Exception as e:  # noqa: BLE001 - whichever it is
        return [type(e).__name__, str(e)]
    return []


def roots_files(place: str, secret: str) -> dict[str, str]:
    """As root without capabilities, which owns them all."""
    os.chown(place, 0, 0)
    enter(profile(place, uid=0, gid=0, groups=()))
    return attempts(
        {
            "own": lambda: open(f"{place}/file", "w").close(),
            "read": lambda: open(secret).close(),
            "write": lambda: open(secret, "r+").close(),
            "cut": lambda: os.truncate(secret, 0),
            "remove": lambda: os.unlink(secret),
            "signal": lambda: os.kill(os.getppid(), 0),
            "look into": lambda: os.listdir(f"/proc/{os.getppid()}/fd"),
        }
    )


def filters_alone(names: list[str]) -> dict[str, str]:
    """With all capabilities and no Landlock: the errno of each call, made with senseless arguments."""
    refused = Refusals()
    libc.prctl(38, 1)
    seccomp.install(refused)
    assert not refused.all()

    def call(name: str) -> Callable[[], object]:
        return lambda: libc.syscall(number_of(name), (1 << 64) - 1, 0, 0, 0, 0)

    return attempts({name: call(name) for name in names})


def runs_a_program(place: str, changes: dict[str, Any]) -> dict[str, str]:
    """The status of a program that it started, and whether that can read another's file."""
    programs = (*(Rule(p, RUN) for p in ("/usr/bin", "/bin", "/lib", "/lib64")), Rule("/proc", Access.READ))
    fixed = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    enter(profile(place, *programs, **fixed))
    script = "cat /proc/self/status; ls / >/dev/null 2>&1 || echo Root: closed"
    ran = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    lines = (line.partition(":") for line in ran.stdout.splitlines())
    return {name: value.strip() for name, _, value in lines}


def closes_descriptors(place: str) -> list[list[int]]:
    """Those open before, those after, less what rules hold in /proc and the listing's; and the one kept."""
    kept, _ = os.pipe()
    before = os.listdir("/proc/self/fd")
    enter(profile(place), keep=(kept,))
    after = [int(fd) for fd in os.listdir("/proc/self/fd") if not _of_proc(fd)]
    return [sorted(map(int, before)), sorted(after), [kept]]


def _of_proc(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("/proc/")
    except OSError:  # the listing's own
        return True


def keeps_its_rights_in_proc(place: str) -> list[bool]:
    """Whether it can look at itself, before and after all that the kernel remembers of files was dropped."""
    enter(profile(place))
    found = []
    for _ in range(2):
        try:
            with open("/proc/self/statm", "rb") as f:
                found.append(bool(f.read()))
        except OSError:
            found.append(False)
        print("looked", flush=True)
        sys.stdin.readline()
    return found


def has_lost(place: str, names: list[str], uid: int) -> dict[str, Any]:
    """Enters when it has lost capabilities already."""
    have = mask_of(read_status().permitted) & ~mask_of(tuple(names))
    libc.capset(have, have, 0)
    return told(enter(profile(place, uid=uid, capabilities=("NET_ADMIN",))))


def is_contained(place: str) -> dict[str, Any]:
    """Enters as the container's user that it is already, without any capability to give up."""
    for number in range(41):
        libc.prctl(24, number)
    os.setgroups([GROUP])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    return told(enter(with_identity_as_it_is(profile(place, uid=1, gid=2, capabilities=("NET_RAW",)))))


def finds_calls_missing(place: str, calls: list[int], require: bool) -> Any:
    """Enters where the host answers ENOSYS to some calls, as an old kernel does."""
    steps = [seccomp._step(0x20, 0)]
    for call in calls:
        steps += [seccomp._step(0x15, call, 0, 1), seccomp._step(0x06, 0x50000 | errno.ENOSYS)]
    body = libc.memory_of(b"".join([*steps, seccomp._step(0x06, 0x7FFF0000)]))
    header = struct.pack("HxxxxxxQ", len(body) // 8, libc.address_of(body))
    libc.syscall(MACHINE.seccomp, 1, 0, libc.memory_of(header))
    try:
        result = enter(profile(place), require=require)
    except PermanentError as e:
        return [str(e), msgspec.to_builtins(read_status())]
    return told(result)


MISSING_LANDLOCK, MISSING_SECCOMP = CREATE_RULESET, MACHINE.seccomp


def has_threads(place: str) -> dict[str, Any]:
    threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
    return told(enter(profile(place)))


def cannot_reach(place: str, path: str) -> dict[str, Any]:
    return told(enter(profile(place, reach=(*code(), path))))


def uses_ports(place: str, bind: int, call: int, other: int) -> dict[str, str]:
    enter(profile(place, bind=(bind,), connect=(call,)))
    return attempts(
        {
            "bind": lambda: listen(bind),
            "bind another": lambda: listen(0),
            "connect": lambda: connect(call),
            "connect to another": lambda: connect(other),
        }
    )


def calls_abstract(place: str, name: str, scoped: bool) -> dict[str, str]:
    enter(profile(place, scope_sockets=scoped))

    def own() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"\0{name}-own")
            listener.listen()
            call_abstract(f"{name}-own")

    return attempts({"outside": lambda: call_abstract(name), "own": own})


def is_locked(place: str) -> list[int]:
    """Whether others of its user may look into it, and the securebits."""
    enter(profile(place, uid=0, gid=0))
    return [libc.prctl(3), libc.prctl(27)]


def enters_twice(place: str) -> list[Any]:
    enter(profile(place))
    return [told(enter(profile(place))), attempts({"list": lambda: os.listdir(place)})]


def follows_another_architecture(place: str) -> int:
    """The signal that ends a child which calls the kernel by the numbers of 32-bit programs."""
    enter(profile(place))
    pid = os.fork()
    if not pid:
        code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20 (getpid); int 0x80; ret
        import mmap

        memory = mmap.mmap(-1, 4096, prot=7)
        memory.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        ctypes.CFUNCTYPE(ctypes.c_int)(address)()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


def works(worker: str, flags: dict[str, Any]) -> None:
    """Runs a real worker under its profile."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in flags.items()}
    config = Config(**values)
    begun = time.perf_counter()
    result = enter(profile_for(worker, config))
    spent = time.perf_counter() - begun
    fd = os.open(f"{config.run_dir}/{worker}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, msgspec.json.encode({"level": "sandbox", "msg": "", "spent": spent, **told(result)}) + b"\n")
    for output in (1, 2):
        os.dup2(fd, output)
    os._exit(run_worker(worker, config))
