"""The parent's main program: ``kg`` without a command.

It does none of the workers' work, holds no key and no API client. Its end is in three ways: told to
(SIGTERM, SIGINT) it ends the workers in an order that lets them clean up; by SIGHUP without clean-up,
as for a restart; killed, it leaves them to end by themselves, and the data plane stays.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

from kilo import __version__
from kilo.bus import WORKERS, Loop
from kilo.config import Config
from kilo.errors import PermanentError
from kilo.log import Logger
from kilo.supervisor import child
from kilo.supervisor.control import ControlServer
from kilo.supervisor.process import Launcher, Target, WorkerProcess, process_context

STOP_ORDER = (("watcher", "cni"), ("netctl",), ("mesh", "health"))
"""The annotations go first, so that others stop sending; then the kernel's state; then the rest."""
STOP_LIMITS = (7.0, 9.0, 2.0)
"""Seconds for each group of STOP_ORDER, 18 in all; then it is killed."""
START_ORDER = ("netctl", "watcher", "mesh", "cni", "health")
"""The slowest to start comes first; any order works."""


class Supervisor:
    """Runs the workers until told to end; ``run`` gives the exit status."""

    def __init__(self, config: Config, target: Target = child.main) -> None:
        self.log = Logger("parent", config.log_level)
        self.loop = Loop()
        self.config = config
        self.status = 0
        self.stopping = False
        self._stage = -1
        self._deadline = 0.0
        prepare_run_dir(config.run_dir)
        self.control = ControlServer(self.loop, config.run_dir, self.log)
        keep_temporary_files_in(config.run_dir)
        launcher = Launcher(process_context(), target)
        self.workers = {
            name: WorkerProcess(name, config, self.loop, self.log, launcher) for name in START_ORDER
        }
        for worker in self.workers.values():
            worker.on_permanent = self._on_permanent
            worker.on_ended = self._on_ended
        self.control.serve(self.workers)

    def run(self) -> int:
        """Serve until every worker has ended."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda n, frame: self.loop.post(lambda: self._on_signal(n)))
        signal.signal(signal.SIGCHLD, lambda n, frame: self.loop.post(self._reap))
        self.log.info("starting", version=__version__, pid=os.getpid(), node=self.config.hostname)
        for name in START_ORDER:
            self.workers[name].start()
        self.loop.call_every(1.0, self._tick)
        self.loop.run()
        self.control.close()
        self.loop.close()
        self.log.info("ended", status=self.status)
        return self.status

    def _tick(self) -> None:
        for worker in self.workers.values():
            if not self.stopping:
                worker.check()
        if self.stopping and time.monotonic() > self._deadline:
            for name in STOP_ORDER[self._stage]:
                if self.workers[name].pid:
                    self.log.error("worker did not end in time; killed", worker=name)
                    self.workers[name].kill()

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if self.stopping:
            self.log.warn("second signal; not waiting", signal=name)
            self.status = self.status or 1
            for worker in self.workers.values():
                worker.kill()
            self.loop.call_later(0.5, self.loop.stop)
            return
        stays = number == signal.SIGHUP
        self.log.info("ending", signal=name, clean_up=self.config.clean_up and not stays)
        self._stop(signal.SIGHUP if stays else signal.SIGTERM)

    def _on_permanent(self, name: str) -> None:
        if not self.stopping:
            self.log.error("a worker cannot run; ending, the data plane stays", worker=name)
            self.status = 2
            self._stop(signal.SIGHUP)

    def _stop(self, number: int) -> None:
        self.stopping = True
        self._stop_signal = number
        for worker in self.workers.values():
            worker.wanted = False
        self._next_stage()

    def _next_stage(self) -> None:
        self._stage += 1
        if self._stage == len(STOP_ORDER):
            self.loop.stop()
            return
        self._deadline = time.monotonic() + STOP_LIMITS[self._stage]
        for name in STOP_ORDER[self._stage]:
            self.workers[name].signal(self._stop_signal)
        self._on_ended("")

    def _on_ended(self, name: str) -> None:
        if self.stopping and not any(self.workers[n].pid for n in STOP_ORDER[self._stage]):
            self._next_stage()

    def _reap(self) -> None:
        """Take the status of orphans that became our children, and of nobody else's."""
        own = {forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid}  # type: ignore[attr-defined]
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if found.si_pid in own:
                if not self.stopping:
                    self.log.warn("the process that starts workers ended; starting it again")
                    forkserver.ensure_running()
                    resource_tracker.ensure_running()
                return
            with contextlib.suppress(ChildProcessError):
                os.waitpid(found.si_pid, os.WNOHANG)


def prepare_run_dir(run_dir: str) -> None:
    """Make the directory of every worker's socket. Raises PermanentError."""
    try:
        for name in WORKERS:
            Path(run_dir, name).mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as e:
        raise PermanentError(f"cannot make {e.filename}: {e.strerror}; see --run-dir") from e


def keep_temporary_files_in(run_dir: str) -> None:
    """multiprocessing has its sockets in a temporary directory, which SIGKILL leaves behind: have it
    where nobody else may look, and remove those of earlier parents. For the only parent in ``run_dir``."""
    for old in Path(run_dir).glob("pymp-*"):
        shutil.rmtree(old, ignore_errors=True)
    tempfile.tempdir = run_dir


def main(config: Config) -> int:
    """Run the parent; its exit status."""
    try:
        return Supervisor(config).run()
    except PermanentError as e:
        print(f"kg: {e}", file=sys.stderr)
        return 2
