"""The parent's main program: ``kg`` without a command.

It does none of the workers' work, holds no key and no API client. Its end is in three ways: told to
(SIGTERM, SIGINT) it ends the workers in an order that lets them clean up; by SIGHUP without clean-up,
as for a restart; killed, it leaves them to end by themselves, and the data plane stays.
"""

from __future__ import annotations

import contextlib
import grp
import os
import shutil
import signal
import stat
import tempfile
import time
import traceback
from pathlib import Path

from kilo import __version__
from kilo.bus import WORKERS, Loop
from kilo.config import Config, differing
from kilo.errors import PermanentError
from kilo.leash import END, GO, QUIT
from kilo.log import Logger, complain, own_outputs
from kilo.model.readiness import WorkerView, not_ready
from kilo.sandbox.profiles import join_groups
from kilo.sandbox.status import read_status
from kilo.supervisor import child, forkserver
from kilo.supervisor.control import ControlServer
from kilo.supervisor.ending import Ending
from kilo.supervisor.notify import Notifier
from kilo.supervisor.process import Launcher, Target, WorkerProcess
from kilo.worker import ENDING, SAME_SIGNAL, until_next

START_ORDER = ("netctl", "watcher", "mesh", "cni", "health")
"""The slowest to start comes first; any order works."""
WAITS = "netctl"
"""Makes things on the host as soon as it starts, and so does not before ..."""
WAITS_FOR = frozenset(START_ORDER) - {WAITS}
"""... these have found their configuration good. It loads its code meanwhile, which takes longest."""
TICK = 1.0
"""Seconds between two looks at what does not tell by itself that it is gone."""
MEND_EVERY = 1.0
"""Seconds at least between two starts of the forkserver."""
LATE = 3.0
"""Seconds after which a look that comes late says that the host stood still, and not only the workers."""
WAITS_AT_MOST = 5.0
"""Seconds; an exec plugin of a kubeconfig can take long."""


class Supervisor:
    """Runs the workers until told to end; ``run`` gives the exit status."""

    def __init__(self, config: Config, target: Target = child.main) -> None:
        self.log = Logger("parent", config.log_level)
        self.loop = Loop(on_error=self._on_error)
        self.config = config
        self.status = 0
        self._signalled = 0.0
        self._notifier = Notifier(os.environ)
        self._awaited = set(WAITS_FOR)
        self._mended = float("-inf")
        self._ticked = time.monotonic()
        group = group_of(config.control_group)
        join_groups()
        prepare_run_dir(config.run_dir)
        self.control = ControlServer(self.loop, config.run_dir, self.log, group)
        keep_temporary_files_in(config.run_dir)
        launcher = Launcher(forkserver.process_context(), target)
        self.workers = {
            name: WorkerProcess(name, config, self.loop, self.log, launcher) for name in START_ORDER
        }
        self.ending = Ending(self.workers, self.loop, self.log, config.clean_up)
        for worker in self.workers.values():
            worker.on_permanent = self._on_permanent
            worker.on_started = self._on_started
            worker.on_ended = self.ending.on_ended
        self.control.serve(self.workers, differing(config))

    def run(self) -> int:
        """Serve until every worker has ended."""
        for number in ENDING:
            signal.signal(number, lambda n, frame: self.loop.post(lambda: self._on_signal(n)))
        signal.signal(signal.SIGCHLD, lambda n, frame: self.loop.post(self._reap))
        self.loop.post(self._reap)  # what ended before that
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        self.log.info("starting", version=__version__, pid=os.getpid(), node=self.config.hostname)
        child.tell_closed(self.config, self.log)
        for name in START_ORDER:
            self.workers[name].start(None if name == WAITS else GO)
        self.loop.call_later(WAITS_AT_MOST, self._let_go)
        self.loop.call_every(TICK, self._tick, first=until_next(TICK))
        self.loop.run()
        self.control.close()
        self.loop.close()
        self.status = self.status or (1 if self.ending.failed else 0)
        self.log.info("ended", status=self.status)
        return self.status

    def _on_started(self, name: str) -> None:
        if name in self._awaited:
            self._awaited.remove(name)
            if not self._awaited:
                self._let_go()

    def _let_go(self) -> None:
        """Said twice it counts once."""
        self.workers[WAITS].tell(GO)

    def _tick(self) -> None:
        if self.ending.begun:
            return
        now = time.monotonic()
        late, self._ticked = now - self._ticked > TICK + LATE, now
        if late:
            self.log.warn("this process was not running for a while; workers get their time anew")
            for worker in self.workers.values():
                worker.heard = now
        self._notify()
        homes = all(os.path.isdir(os.path.join(self.config.run_dir, name)) for name in WORKERS)
        if not (homes and self.control.reachable and forkserver.reachable()):
            self._reach_again()
        for worker in self.workers.values():
            worker.check()

    def _notify(self) -> None:
        """Tell the service manager. A worker that is not ready is named, as ``kg status`` names it."""
        now = time.monotonic()
        views = {
            name: WorkerView(name, worker.state, now - worker.heard) for name, worker in self.workers.items()
        }
        wrong = not_ready(views, time.time(), self.config.cni)
        status = "; ".join(f"{name}: {why}" for name, why in wrong.items()) or "healthy"
        self._notifier.tell(all(worker.started for worker in self.workers.values()), status)

    def _reach_again(self) -> None:
        """Somebody removed what is in ``--run-dir``. Workers may use the directories that were there when
        they were started, and no others: so they are started again."""
        try:
            prepare_run_dir(self.config.run_dir)
            if not self.control.reachable:
                self.control.listen_again()
            forkserver.reach_again()
        except PermanentError as e:
            self.log.error(f"{e}; ending, the data plane stays")
            self.status = 1
            self.ending.begin(QUIT)
        else:
            self.log.warn("files in --run-dir were removed; made again", directory=self.config.run_dir)
            for worker in self.workers.values():
                worker.restart()

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        first, self._signalled = not self._signalled, self._signalled or now
        if not first:
            if now - self._signalled > SAME_SIGNAL:
                self.log.warn("second signal; not waiting", signal=name)
                self.ending.hurry()
            return
        stays = number == signal.SIGHUP
        self.log.info("ending", signal=name, clean_up=self.config.clean_up and not stays)
        self._notifier.stopping()
        self.ending.begin(QUIT if stays else END)

    def _on_permanent(self, name: str) -> None:
        self.log.error("a worker cannot run; ending, the data plane stays", worker=name)
        self.status = 2
        self.ending.begin(QUIT)

    def _on_error(self, error: Exception) -> None:
        """An exception nobody expected costs its callback: the workers are not to be without a parent."""
        trace = "".join(traceback.format_exception(error))
        self.log.error(f"{type(error).__name__}: {error}", trace=trace)

    def _reap(self) -> None:
        """Take the status of orphans that became our children, and of nobody else's."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if found.si_pid in forkserver.own_pids():
                now = time.monotonic()
                if now - self._mended < MEND_EVERY:
                    self.loop.call_later(MEND_EVERY, self._reap)
                    return
                self._mended = now
                self.log.warn("the process that starts workers ended; starting it again")
                forkserver.ensure_running()
            else:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(found.si_pid, os.WNOHANG)


def group_of(text: str) -> int | None:
    """The number of the group with that name or number, None for "". Raises PermanentError."""
    if not text:
        return None
    if text.isdecimal():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError as e:
        raise PermanentError(f"--control-group: there is no group {text!r} on this host") from e


def _make_open(path: str) -> None:
    """Make a directory that others may go through, and none may write, whatever our umask is."""
    try:
        os.mkdir(path)
    except FileExistsError:
        state = os.stat(path)
        if not stat.S_ISDIR(state.st_mode):
            raise
        if state.st_uid == os.geteuid() and state.st_mode & 0o1022 in (0o002, 0o020, 0o022):
            os.chmod(path, state.st_mode & 0o755)  # a volume that is everybody's; no sticky one, as /tmp is
    else:
        os.chmod(path, 0o755)  # noqa: S103 - sockets in there have modes of their own


def prepare_run_dir(run_dir: str) -> None:
    """Make the directory of every worker's socket. Raises PermanentError."""
    try:
        os.makedirs(os.path.dirname(run_dir), exist_ok=True)
        _make_open(run_dir)
        owner = os.stat(run_dir).st_uid
        if owner not in (0, os.geteuid()):
            raise PermanentError(f"--run-dir {run_dir} is user {owner}'s, who could speak for any worker")
        for name in WORKERS:
            _put_away(os.path.join(run_dir, name))
            _make_open(os.path.join(run_dir, name))
    except OSError as e:
        raise PermanentError(f"--run-dir {run_dir}: cannot make {e.filename}: {e.strerror}") from e


def _put_away(home: str) -> None:
    """Rename what a worker could not live in: a link to somewhere else, and a directory of an earlier run's
    worker, if we have not the right to give it to another."""
    try:
        state = os.lstat(home)
    except FileNotFoundError:
        return
    foreign = state.st_uid != os.geteuid() and "CHOWN" not in read_status().permitted
    if foreign or stat.S_ISLNK(state.st_mode):
        os.rename(home, f"{home}.{time.time_ns()}")


def keep_temporary_files_in(run_dir: str) -> None:
    """multiprocessing has its sockets in a temporary directory, which SIGKILL leaves behind: have it
    where nobody else may look, and remove those of earlier parents. For the only parent in ``run_dir``."""
    for old in Path(run_dir).glob("pymp-*"):
        shutil.rmtree(old, ignore_errors=True)
    tempfile.tempdir = run_dir


def main(config: Config, target: Target = child.main) -> int:
    """Run the parent; its exit status."""
    own_outputs()
    try:
        supervisor = Supervisor(config, target)
    except PermanentError as e:
        complain(f"kg: {e}")
        return 2
    try:
        status = supervisor.run()
    except Exception:  # noqa: BLE001 - the main loop
        supervisor.log.error("the parent died", trace=traceback.format_exc())
        child.leave(1)  # at once: the workers see it, and end by themselves
    if any(worker.pid for worker in supervisor.workers.values()):
        child.leave(status)  # one that cannot be killed would be waited for
    return status
