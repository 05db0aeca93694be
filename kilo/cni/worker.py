"""The cni worker: keeps this node's pod CIDR in the CNI configuration list.

Level-triggered: the file is compared with the target when the target arrives and every two
seconds, by its version first and by its content only where that differs. Nothing is written before
the target is known, and nothing is undone at the end: pods outlive the agent.
"""

from __future__ import annotations

import os
import time

from kilo.bus import CNI, Change, Subscription
from kilo.cni import conflist, files
from kilo.errors import ProtocolError, TemporaryError
from kilo.model.plan import CniTarget
from kilo.model.readiness import NO_PODS
from kilo.worker import Context, until_next

EVENT = "cni"
SHADOWED = "shadowed"
OTHER_IPAM = "ipam"
LOOK_EVERY = 2.0


class CniWorker:
    """See the module. Failures are ``conflist`` (the file), ``ipam`` (other types in it), ``shadowed`` (by
    whose) and ``pod-cidr`` (what the bus says)."""

    def __init__(self, context: Context) -> None:
        self._path = context.config.cni_path
        self._on = context.config.cni
        self._resync = context.config.resync_period
        self._context = context
        self._log = context.log
        self._report = context.report
        self._target: CniTarget | None = None
        self._kept: CniTarget | None = None
        self._seen: files.Version | None = None
        self._preferred = ""
        self._patient_until = 0.0
        self._subscription: Subscription[CniTarget] | None = None

    def start(self) -> None:
        if not self._on:
            self._report.info["cni"] = "off: --cni=false"
            self._report.ready()
            return
        self._report.info["conflist"] = self._path
        self._report.gauges.update({"cni_writes_total": 0, "cni_repairs_total": 0})
        if not self._path.endswith(files.READ_BY_RUNTIME):
            self._log.warn("container runtimes read only .conf, .conflist and .json", path=self._path)
        self._subscription = self._context.subscribe(CNI, self._on_target)
        self._context.loop.call_every(self._resync, self._check)
        period = min(LOOK_EVERY, self._resync)
        self._context.loop.call_every(period, self._look, first=until_next(period))

    def stop(self, clean_up: bool) -> None:
        """The list stays, as the Go agent leaves it: running pods and the next start need it."""

    def _on_target(self, change: Change[CniTarget]) -> None:
        if CNI.name in change.removals:
            self._log.info("no pod CIDR any more; the list stays as it is", path=self._path)
            self._target = self._seen = None
        target = change.upserts.get(CNI.name)
        if target is None:
            return
        try:
            conflist.check_target(target)
        except ProtocolError as e:
            self._report.fail("pod-cidr", f"refused: {e}", EVENT)
            return
        self._report.mend("pod-cidr")
        if self._target is None:
            self._remove_leftover()
        self._target, self._seen = target, None
        self._check()

    def _look(self) -> None:
        """As ``_check``, but somebody who keeps changing the list is answered once in a resync period."""
        if time.monotonic() >= self._patient_until:
            self._check()

    def _check(self) -> None:
        """Compare, and put right what differs."""
        if self._target is None:
            return
        try:
            self._keep(self._target)
            self._look_around()
        except ProtocolError as e:
            self._fail(f"{self._path}: {e}; it is left alone", self._target)
        except TemporaryError as e:
            self._seen = None
            self._fail(str(e), self._target)

    def _fail(self, why: str, target: CniTarget) -> None:
        """What failed may be of no consequence: the file can be good all the same."""
        self._report.fail("conflist", why, EVENT)
        if self._is_good(target):
            self._report.info.pop(NO_PODS, None)
        else:
            self._report.info[NO_PODS] = f"no pod can be started: {why}"

    def _is_good(self, target: CniTarget) -> bool:
        """Whether the file is there and says what it must."""
        try:
            found = files.read(files.target_of(self._path))
            return found is not None and conflist.with_pod_cidr(found.content, target.pod_cidr) is None
        except (ProtocolError, TemporaryError):
            return False

    def _keep(self, target: CniTarget) -> None:
        path = files.target_of(self._path)
        if self._seen is not None and files.version_of(path) == self._seen:
            return
        self._seen = None
        found = files.read(path)
        if found is not None and found.settled:
            self._seen = found.version
        if found is None:
            content: bytes | None = conflist.fresh(target)
        else:
            content = conflist.with_pod_cidr(found.content, target.pod_cidr)
        if content is not None:
            self._write(path, content, found, target)
        self._check_ipam(conflist.other_ipam(found.content) if found else [], target)
        self._kept = target
        self._report.info["pod_cidr"] = target.pod_cidr
        self._report.info.pop(NO_PODS, None)
        self._report.mend("conflist")
        self._report.ready()

    def _write(self, path: str, content: bytes, found: files.Found | None, target: CniTarget) -> None:
        self._seen = None
        files.replace(path, content, found)
        gauges = self._report.gauges
        gauges["cni_writes_total"] += 1
        if self._kept == target:
            gauges["cni_repairs_total"] += 1
            self._patient_until = time.monotonic() + self._resync
            self._log.warn("somebody else changed the list; repaired", path=path, pod_cidr=target.pod_cidr)
        else:
            self._log.info("pod CIDR written", path=path, pod_cidr=target.pod_cidr, made=found is None)

    def _check_ipam(self, others: list[str], target: CniTarget) -> None:
        """Pods start with addresses of another ipam, so that the node stays ready, but the mesh has no route
        to them."""
        if not others:
            self._report.mend(OTHER_IPAM)
            return
        self._report.fail(
            OTHER_IPAM,
            f"{self._path}: {', '.join(others)}, which is left alone: what it assigns is not of the pod CIDR "
            f"{target.pod_cidr}, and the mesh does not reach it; write {conflist.HOST_LOCAL} there, or run "
            "with --cni=false",
            EVENT,
        )

    def _look_around(self) -> None:
        """Say once if the container runtime prefers another network's configuration."""
        names = files.before(self._path)
        first = names[0] if names else ""
        if first == self._preferred:
            return
        self._preferred = first
        if not first:
            self._report.mend(SHADOWED)
            return
        other = os.path.join(os.path.dirname(self._path), first)
        self._report.fail(
            SHADOWED,
            f"the container runtime uses {other}, which sorts before {self._path}: pods get that network",
            EVENT,
        )

    def _remove_leftover(self) -> None:
        try:
            files.remove_leftover(files.target_of(self._path))
        except TemporaryError:
            return  # the check that follows says why
