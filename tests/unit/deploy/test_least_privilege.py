"""The split manifests by structure: what each container may do is what the table says, and no more.

Where they do not pass the Pod Security Standard "restricted", the exceptions are the ones listed here.
https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from typing import Any

import pytest

from kilo.model.workers import IDS, WORKERS
from kilo.sandbox.profiles import SUPERVISOR
from tests.unit.deploy.rendered import (
    NAMES,
    OWN_CNI,
    SINGLE,
    SPLIT,
    Document,
    container,
    containers,
    daemonsets,
    mounts,
    one,
    pod,
    pod_of,
)

GROUP = SUPERVISOR
ROOT = {"netctl", "cni", "install-cni", "wireguard-go"}
"""Who is user 0; the comments of the manifest say why."""
CAPABILITIES = {"netctl": {"NET_ADMIN", "NET_RAW"}, "wireguard-go": {"NET_ADMIN"}}
PARENT = ("CHOWN", "KILL", "SETGID", "SETPCAP", "SETUID")
"""Where all are in one container: what their parent needs to make them users of their own, and take from
them what they do not need."""
HEARS = {
    "watcher": {"mesh"},
    "mesh": {"watcher", "netctl"},
    "netctl": {"mesh"},
    "cni": {"mesh"},
    "health": {"watcher", "mesh", "netctl", "cni"},
}
"""Whose topics each worker subscribes to."""
HOST_PATHS = {
    "netctl": {"/var/lib/kilo": "/var/lib/kilo", "/run/xtables.lock": "/run/xtables.lock"},
    "cni": {"/etc/cni/net.d": "/etc/cni/net.d"},
    "install-cni": {"/host/opt/cni/bin": "/opt/cni/bin"},
    "wireguard-go": {"/run/wireguard": "/run/wireguard", "/dev/net/tun": "/dev/net/tun"},
}
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


def security(spec: Document, container: Document) -> dict[str, Any]:
    """A container's security context, with what the pod's gives it."""
    return {**spec.get("securityContext", {}), **container.get("securityContext", {})}


def violations(spec: Document, container: Document) -> set[str]:
    """What the standard "restricted" has against a container."""
    context = security(spec, container)
    capabilities = context.get("capabilities", {})
    found = {f"adds {c}" for c in set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}}
    wrong = {
        "privileged": context.get("privileged", False),
        "may escalate": context.get("allowPrivilegeEscalation") is not False,
        "keeps capabilities": capabilities.get("drop") != ["ALL"],
        "runs as root": not context.get("runAsNonRoot") or context.get("runAsUser") == 0,
        "no seccomp": context.get("seccompProfile", {}).get("type") != "RuntimeDefault",
        "proc mount": context.get("procMount", "Default") != "Default",
        "sysctls": "sysctls" in context,
        "SELinux options": "seLinuxOptions" in context,
    }
    return found | {name for name, is_so in wrong.items() if is_so}


@pytest.mark.parametrize("name", (*SPLIT, "uninstall"))
def test_the_exceptions_are_these_alone(name: str) -> None:
    for daemonset in daemonsets(name):
        spec = pod_of(daemonset)
        assert spec["hostNetwork"] is True
        assert not spec.get("hostPID", False)
        assert not spec.get("hostIPC", False)
        for each in containers(spec):
            called = each["name"]
            allowed = {f"adds {c}" for c in CAPABILITIES.get(called, set())}
            allowed |= {"runs as root"} if called in ROOT else set()
            assert violations(spec, each) == allowed, f"{name}: {called}"


@pytest.mark.parametrize("name", SINGLE)
def test_one_container_for_all_is_not_privileged_either(name: str) -> None:
    found = violations(pod(name), container(name, "kilo"))
    assert found == {"runs as root"} | {f"adds {c}" for c in (*CAPABILITIES["netctl"], *PARENT)}
    assert pod(name)["securityContext"]["fsGroup"] == IDS["watcher"], "or only user 0 could read the token"


@pytest.mark.parametrize("name", NAMES)
def test_no_root_file_system_can_be_written_to(name: str) -> None:
    for daemonset in daemonsets(name):
        for each in containers(pod_of(daemonset)):
            assert each["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("name", SPLIT)
def test_who_need_not_be_root_are_users_of_their_own(name: str) -> None:
    users = {c["name"]: c["securityContext"]["runAsUser"] for c in containers(pod(name))}
    others = [user for called, user in users.items() if called not in ROOT]
    assert len(set(others)) == len(others)
    assert all(user > 10000 for user in others), "no user that a host is likely to have"


@pytest.mark.parametrize("name", SPLIT)
def test_each_worker_writes_to_its_own_directory_and_reads_whom_it_hears(name: str) -> None:
    spec = pod(name)
    assert spec["securityContext"]["fsGroup"] == GROUP
    present = {c["name"] for c in spec["containers"]} & set(WORKERS)
    assert present == set(WORKERS) - (set() if name.split("-")[0] in OWN_CNI else {"cni"})
    for worker in present:
        bus = {p: m for p, m in mounts(spec, worker).items() if p.startswith("/run/kilo")}
        expected = {f"/run/kilo/{other}": (f"bus-{other}", False) for other in HEARS[worker] & present}
        assert bus == expected | {f"/run/kilo/{worker}": (f"bus-{worker}", True)}
    for volume in spec["volumes"]:
        if volume["name"].startswith("bus-"):
            assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Mi"}


@pytest.mark.parametrize("name", SPLIT)
def test_the_host_s_paths_are_where_the_table_says(name: str) -> None:
    for daemonset in daemonsets(name):
        spec = pod_of(daemonset)
        host = {v["name"]: v["hostPath"]["path"] for v in spec["volumes"] if "hostPath" in v}
        for each in containers(spec):
            called = each["name"]
            found = {p: host[v] for p, (v, _) in mounts(spec, called).items() if v in host}
            expected = dict(HOST_PATHS.get(called, {}))
            if called == "netctl" and name.startswith("userspace"):
                expected["/run/wireguard"] = "/run/wireguard"
            assert found == expected, f"{name}: {called}"
        mounted = {v for each in containers(spec) for v, _ in mounts(spec, each["name"]).values()}
        assert mounted == {v["name"] for v in spec["volumes"]}, "no volume that nobody mounts"


@pytest.mark.parametrize("name", SPLIT)
def test_the_token_is_the_watcher_s_alone(name: str) -> None:
    assert one(name, "ServiceAccount")["automountServiceAccountToken"] is False
    for daemonset in daemonsets(name):
        spec = pod_of(daemonset)
        assert spec["automountServiceAccountToken"] is False
        holders = [c["name"] for c in containers(spec) if TOKEN in mounts(spec, c["name"])]
        assert holders == (["watcher"] if daemonset["metadata"]["name"] == "kilo" else [])


@pytest.mark.parametrize("name", NAMES)
def test_no_service_can_set_a_flag(name: str) -> None:
    for daemonset in daemonsets(name):
        assert pod_of(daemonset)["enableServiceLinks"] is False


@pytest.mark.parametrize("name", (*SPLIT, *SINGLE))
def test_every_worker_has_probes(name: str) -> None:
    for each in pod(name)["containers"]:
        called = each["name"]
        alone = called in WORKERS
        ready = f"/ready?worker={called}" if alone else "/ready"
        assert each["readinessProbe"]["httpGet"] == {"path": ready, "port": 1107}
        if called in ("health", "kilo"):
            assert each["livenessProbe"]["httpGet"] == {"path": "/health", "port": 1107}
        else:
            command = ["python3", "-m", "kilo.cli.probe", called]
            assert each["livenessProbe"]["exec"]["command"] == command


@pytest.mark.parametrize("name", (*SPLIT, *SINGLE))
def test_an_upgrade_takes_one_node_after_the_other(name: str) -> None:
    assert one(name, "DaemonSet")["spec"]["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 1},
    }


@pytest.mark.parametrize("name", ["userspace-split", "userspace-single"])
def test_an_upgrade_of_the_agent_leaves_wireguard_go_alone(name: str) -> None:
    assert one(name, "DaemonSet", "kilo-wireguard")["spec"]["updateStrategy"] == {"type": "OnDelete"}
