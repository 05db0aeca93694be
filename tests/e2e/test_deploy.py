"""The manifests as they are: their containers on three hosts, each with what its security context gives it.

Two hosts have the split one. On one of them each worker is then started with one thing less than it has,
which shows that it needs it.
"""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kilo.model.workers import IDS, WORKERS
from tests.apiserver import Admin
from tests.e2e.observe import no_ping_lost
from tests.lab.agents import Agent
from tests.lab.dataplane import CONFLIST
from tests.lab.host import wait_until
from tests.lab.kubelet import Cluster, Container, Pod
from tests.lab.mesh import Member, Mesh, NodeSpec
from tests.unit.deploy.rendered import PATHS, daemonsets, documents

READY = '"msg":"ready"'

NAME = "userspace-split"
MANIFESTS = {"ada": NAME, "bob": NAME, "cleo": "userspace-single"}
NAMESPACE = "kube-system"
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
CHANGED = {"KILO_ENCAPSULATE": "never"}
"""What an operator would add to the flags here."""
NET_ADMIN, NET_RAW = 1 << 12, 1 << 13
PARENT = NET_ADMIN | NET_RAW | 1 << 0 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8
"""What the workers need, and CHOWN, KILL, SETGID, SETUID and SETPCAP."""
OF_WORKER = {"watcher": 0, "mesh": 0, "netctl": NET_ADMIN | NET_RAW, "cni": 0, "health": 0}


def config_maps(mesh: Mesh) -> dict[str, dict[str, str]]:
    """The manifest's, and those that kubeadm and the cluster itself make."""
    found = {d["metadata"]["name"]: d["data"] for d in documents(NAME) if d["kind"] == "ConfigMap"}
    (flags,) = found
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "default",
                "cluster": {"server": mesh.cluster.url, "certificate-authority": f"{TOKEN}/ca.crt"},
            }
        ],
        "users": [{"name": "default", "user": {"tokenFile": f"{TOKEN}/token"}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
        "current-context": "default",
    }
    return {
        flags: {**found[flags], **CHANGED},
        "kube-proxy": {"kubeconfig.conf": json.dumps(kubeconfig)},
        "kube-root-ca.crt": {"ca.crt": authority(mesh)},
    }


def authority(mesh: Mesh) -> str:
    """The certificate of a real API server; a stand-in has none."""
    cluster = json.loads(mesh.cluster.kubeconfig)["clusters"][0]["cluster"]
    return base64.b64decode(cluster.get("certificate-authority-data", "")).decode()


def apply(admin: Admin) -> None:
    """What of the manifest is no pod's."""
    for kind in ("clusterrolebindings", "clusterroles"):
        admin.request("DELETE", f"/apis/rbac.authorization.k8s.io/v1/{kind}/kilo")
    for document in documents(NAME):
        if document["kind"] not in ("DaemonSet", "ConfigMap"):
            admin.request("POST", PATHS[document["kind"]], document)


def token(node: str, admin: Admin) -> str:
    """A token as a kubelet asks for one: bound to the agent's pod on ``node``."""
    base = f"/api/v1/namespaces/{NAMESPACE}"
    spec = {"nodeName": node, "serviceAccountName": "kilo", "containers": [{"name": "x", "image": "x"}]}
    pod = admin.request("POST", f"{base}/pods", {"metadata": {"name": f"kilo-{node}"}, "spec": spec})
    bound = {
        "kind": "Pod",
        "apiVersion": "v1",
        "name": pod["metadata"]["name"],
        "uid": pod["metadata"]["uid"],
    }
    path = f"{base}/serviceaccounts/kilo/token"
    answer = admin.request("POST", path, {"spec": {"expirationSeconds": 3600, "boundObjectRef": bound}})
    return str(answer["status"]["token"])


class PodAgent(Agent):
    """The agent of a host as the manifest's pods."""

    def __init__(self, member: Member, cluster: Cluster) -> None:
        super().__init__(member.host, member.agent.program, [])
        agent, wireguard = sorted(
            daemonsets(MANIFESTS[member.name]), key=lambda d: str(d["metadata"]["name"])
        )
        self.wireguard = Pod(member.host, wireguard, cluster)
        self.pod = Pod(member.host, agent, cluster)

    def start(self) -> None:
        if not self.wireguard.containers:
            self.wireguard.start()
        self.pod.start()

    def container(self, name: str) -> Container:
        return self.pod.containers[name]


def agent_of(member: Member) -> PodAgent:
    assert isinstance(member.agent, PodAgent)
    return member.agent


@pytest.fixture(scope="module")
def mesh(logs: Path) -> Iterator[Mesh]:
    """Hosts in locations of their own; the API server is a real one, with tokens and policy, if installed."""
    specs = [NodeSpec("ada", "berlin"), NodeSpec("bob", "lisbon"), NodeSpec("cleo", "oslo")]
    with Mesh(specs, logs, (), print, standin=False) as made:
        real = made.cluster.url.startswith("https")
        if real:
            made.cluster.do(apply)
        maps = config_maps(made)
        for member in made:
            fields = {
                "spec.nodeName": member.name,
                "metadata.namespace": NAMESPACE,
                "status.hostIP": member.host.read("/etc/hosts").split()[-2],
            }
            given = made.cluster.do(partial(token, member.name)) if real else "none"
            member.agent = PodAgent(member, Cluster(maps, given, authority(made), fields))
            member.agent.start()
        made.attach_pods(60)
        wait_until(made.routed, 60, "every host has a route to every pod CIDR")
        yield made


def well(member: Member) -> bool:
    """Whether every probe of the host's pods passes."""
    agent = agent_of(member)
    containers = [*agent.pod.containers.values(), *agent.wireguard.containers.values()]
    return not any(each.probe(kind) for each in containers for kind in each.probes)


def test_the_mesh_converges(mesh: Mesh) -> None:
    assert mesh.unanswered(30) == []


def test_every_probe_passes(mesh: Mesh) -> None:
    for member in mesh:
        expected = {*WORKERS} if MANIFESTS[member.name] == NAME else {"kilo"}
        assert {*agent_of(member).pod.containers} == expected
        wait_until(partial(well, member), 30, f"the probes of {member.name} pass")


def test_kg_status_can_be_asked_for_as_kubectl_exec_does(mesh: Mesh) -> None:
    for name, container in (("ada", "health"), ("cleo", "kilo")):
        asked = agent_of(mesh[name]).container(container)
        done = mesh[name].host.call(partial(asked.run, ["kg", "status"]))
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert f"node {name}: healthy" in done.stdout


def test_each_process_has_what_its_container_says(mesh: Mesh) -> None:
    """Read back from the kernel, for every process of every container."""
    allowed = {"netctl": NET_ADMIN | NET_RAW, "wireguard-go": NET_ADMIN}
    for member in (mesh["ada"], mesh["bob"]):
        agent = agent_of(member)
        for pod in (agent.pod, agent.wireguard):
            for spec in pod.spec["containers"]:
                context = {**pod.spec["securityContext"], **spec["securityContext"]}
                for status in pod.containers[spec["name"]].statuses():
                    capabilities = {status[f"Cap{kind}"] for kind in ("Prm", "Eff", "Bnd")}
                    assert {int(c, 16) for c in capabilities} == {allowed.get(spec["name"], 0)}
                    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
                    assert status["NoNewPrivs"] == "1"
                    assert set(status["Uid"].split()) == {str(context["runAsUser"])}
                    assert set(status["Gid"].split()) == {str(context.get("runAsGroup", 0))}
                    assert status["Groups"].split() == [str(g) for g in [context.get("fsGroup")] if g]


def test_no_process_of_a_single_container_has_more_than_that_says(mesh: Mesh) -> None:
    statuses = agent_of(mesh["cleo"]).container("kilo").statuses()
    assert len(statuses) > len(WORKERS)
    for status in statuses:
        most = OF_WORKER.get(status["Name"].removeprefix("kg-"), PARENT)
        assert int(status["CapBnd"], 16) & ~most == 0
        assert int(status["CapPrm"], 16) & ~most == 0
        assert status["NoNewPrivs"] == "1"


def test_the_workers_of_a_single_container_have_what_the_table_says(mesh: Mesh) -> None:
    """That is, the parent could take everything else away."""
    asked = agent_of(mesh["cleo"]).container("kilo")
    done = mesh["cleo"].host.call(partial(asked.run, ["kg", "status", "-o", "json"]))
    found = {w["worker"]: w["sandbox"] for w in json.loads(done.stdout)["workers"]}
    assert found.keys() == OF_WORKER.keys()
    assert {name: sandbox["uid"] for name, sandbox in found.items()} == {
        name: 0 if name in ("netctl", "cni") else number for name, number in IDS.items()
    }
    for name, sandbox in found.items():
        assert sandbox["refused"] == [], name
        assert sandbox["landlock"]
        assert sandbox["capabilities"] == (["NET_ADMIN", "NET_RAW"] if name == "netctl" else [])
        assert sandbox["seccomp"] and sandbox["no_new_privs"]


def test_plugins_and_key_are_on_the_host(mesh: Mesh) -> None:
    for member in mesh:
        for plugin in ("bridge", "host-local", "loopback", "portmap"):
            assert member.host.path(f"/opt/cni/bin/{plugin}").stat().st_mode & 0o777 == 0o755
        key = member.host.path("/var/lib/kilo/key").stat()
        conflist = member.host.path(CONFLIST).stat()
        assert (key.st_mode & 0o777, key.st_uid, key.st_gid) == (0o600, 0, 0)
        assert (conflist.st_mode & 0o777, conflist.st_uid, conflist.st_gid) == (0o644, 0, 0)


def test_a_worker_that_stands_still_is_found_by_its_own_probe_alone(mesh: Mesh) -> None:
    containers = agent_of(mesh["bob"]).pod.containers
    containers["mesh"].signal(signal.SIGSTOP)
    try:
        assert "mesh does not answer" in containers["mesh"].probe("livenessProbe")
        assert [n for n, c in containers.items() if n != "mesh" and c.probe("livenessProbe")] == []
        wait_until(lambda: containers["mesh"].probe("readinessProbe"), 20, "mesh counts as not ready")
        assert containers["netctl"].probe("readinessProbe") == ""
    finally:
        containers["mesh"].signal(signal.SIGCONT)
    wait_until(lambda: well(mesh["bob"]), 30, "bob is well again")


def test_a_pod_that_is_replaced_loses_no_ping(mesh: Mesh) -> None:
    """As an upgrade of the DaemonSet does it: SIGTERM to all containers, and new ones with new volumes."""
    ada, bob = mesh["ada"], mesh["bob"]
    pod = agent_of(ada).pod
    with no_ping_lost((ada, bob), (bob, ada)):
        before = {name: container.pid for name, container in pod.containers.items()}
        pod.stop()
        time.sleep(1)
        pod.start()
        wait_until(lambda: well(ada), 30, "ada is well again")
        time.sleep(1)
    assert not set(before.values()) & {container.pid for container in pod.containers.values()}


@contextmanager
def changed(mesh: Mesh, worker: str, **settings: Any) -> Iterator[Container]:
    """One container of bob's pod runs with other settings meanwhile."""
    pod = agent_of(mesh["bob"]).pod
    pod.containers[worker].kill()
    if "user" in settings:
        pod.empty(f"bus-{worker}")  # what another user left there
    container = pod.start_container(worker, **settings)
    try:
        yield container
    finally:
        container.kill()
        if "user" in settings:
            pod.empty(f"bus-{worker}")
        pod.start_container(worker)


def without(mesh: Mesh, worker: str, path: str) -> dict[str, Any]:
    """The settings of a container without one of its mounts."""
    volumes = agent_of(mesh["bob"]).container(worker).settings["volumes"]
    left = [volume for volume in volumes if volume["path"] != path]
    assert len(left) == len(volumes) - 1
    return {"volumes": left}


def with_flag(mesh: Mesh, worker: str, **flags: str) -> dict[str, Any]:
    """The settings of a container with other flags."""
    environment = agent_of(mesh["bob"]).container(worker).settings["environment"]
    return {"environment": environment | {f"KILO_{name.upper()}": value for name, value in flags.items()}}


def says(container: Container, text: str) -> None:
    wait_until(lambda: text in container.log(), 20, f"{container.name} says {text!r}")


def is_unready(container: Container, worker: str, text: str) -> None:
    """Until /ready says this of ``worker``, whoever asks."""

    def said() -> bool:
        return text in container.probe("readinessProbe")

    wait_until(said, 20, f"{worker} is not ready: {text!r}")


@pytest.mark.parametrize("worker", WORKERS)
def test_each_worker_needs_its_own_directory(mesh: Mesh, worker: str) -> None:
    with changed(mesh, worker, **without(mesh, worker, f"/run/kilo/{worker}")) as container:
        assert container.wait(60) == 2
        assert "cannot prepare the bus socket" in container.log()


@pytest.mark.parametrize(
    ("worker", "path"),
    [("watcher", TOKEN), ("watcher", "/etc/kubernetes"), ("netctl", "/var/lib/kilo")],
)
def test_without_this_mount_a_worker_does_not_start(mesh: Mesh, worker: str, path: str) -> None:
    with changed(mesh, worker, **without(mesh, worker, path)) as container:
        assert container.wait(60) == 2
        assert path in container.log()


@pytest.mark.parametrize(
    ("worker", "path", "reason"),
    [
        ("mesh", "/run/kilo/watcher", "starting"),
        ("mesh", "/run/kilo/netctl", "starting"),
        ("netctl", "/run/kilo/mesh", "no plan is applied yet"),
        ("netctl", "/run/wireguard", "starting"),
        ("cni", "/run/kilo/mesh", "starting"),
    ],
)
def test_without_this_mount_a_worker_is_not_ready(mesh: Mesh, worker: str, path: str, reason: str) -> None:
    with changed(mesh, worker, **without(mesh, worker, path)) as container:
        is_unready(container, worker, reason)


def test_the_watcher_needs_to_hear_mesh(mesh: Mesh) -> None:
    annotations = mesh.cluster.annotations
    with changed(mesh, "watcher", **without(mesh, "watcher", "/run/kilo/mesh")) as container:
        says(container, '"msg":"ready"')
        mesh.cluster.annotate("bob", {"internal-ip": None})
        time.sleep(3)
        assert "internal-ip" not in annotations("bob")
    wait_until(lambda: "internal-ip" in annotations("bob"), 20, "the watcher announces bob again")


@pytest.mark.parametrize("heard", ["watcher", "mesh", "netctl", "cni"])
def test_health_needs_to_hear_everybody(mesh: Mesh, heard: str) -> None:
    other = agent_of(mesh["bob"]).container(heard)
    with changed(mesh, "health", **without(mesh, "health", f"/run/kilo/{heard}")):
        said = f'"{heard}":"not heard"'
        wait_until(lambda: said in other.probe("readinessProbe"), 20, f"{heard} is not heard")


def test_who_is_not_in_the_group_hears_nobody(mesh: Mesh) -> None:
    with changed(mesh, "health", groups=[], group=11075):
        for name in ("watcher", "mesh", "netctl", "cni"):
            is_unready(agent_of(mesh["bob"]).container(name), name, f'"{name}":"not heard"')


def test_netctl_needs_to_administer_the_network(mesh: Mesh) -> None:
    with changed(mesh, "netctl", capabilities=["NET_RAW"]) as container:
        says(container, "Operation not permitted")
        is_unready(container, "netctl", '"netctl":')


def legacy_tables_are_gone(mesh: Mesh) -> None:
    """Those that tests before left, which netctl as it is deployed removes."""
    saved = partial(mesh["bob"].host.run, "iptables-legacy-save")
    wait_until(lambda: "KILO" not in saved(), 20, "what the tests before left is gone")


def test_netctl_needs_raw_sockets_for_legacy_tables(mesh: Mesh) -> None:
    legacy = with_flag(mesh, "netctl", firewall="legacy")
    with changed(mesh, "netctl", capabilities=["NET_ADMIN"], **legacy) as container:
        says(container, "Permission denied (you must be root)")
    with changed(mesh, "netctl", **legacy) as container:
        says(container, READY)
        wait_until(lambda: not container.probe("readinessProbe"), 20, "netctl is ready with NET_RAW")


def test_netctl_needs_no_raw_sockets_for_nftables(mesh: Mesh) -> None:
    """What components/nftables relies on."""
    legacy_tables_are_gone(mesh)
    nftables = with_flag(mesh, "netctl", firewall="nftables")
    less = without(mesh, "netctl", "/run/xtables.lock")
    with changed(mesh, "netctl", capabilities=["NET_ADMIN"], **less, **nftables) as container:
        says(container, READY)
        wait_until(lambda: not container.probe("readinessProbe"), 20, "netctl is ready")
        assert '"level":"error"' not in container.log()


def test_netctl_needs_the_lock_for_legacy_tables(mesh: Mesh) -> None:
    legacy_tables_are_gone(mesh)
    legacy, less = with_flag(mesh, "netctl", firewall="legacy"), without(mesh, "netctl", "/run/xtables.lock")
    with changed(mesh, "netctl", **less, **legacy) as container:
        says(container, "without the xtables lock")


def test_netctl_needs_to_be_user_0(mesh: Mesh) -> None:
    """Not for the capabilities alone, which Kubernetes gives to no other: the key is root's."""
    with changed(mesh, "netctl", user=11073) as container:
        assert container.wait(60) == 2
        assert "cannot read the private key" in container.log()


def unwritable(mesh: Mesh, **settings: Any) -> str:
    """What cni says that should repair a list, and cannot."""
    bob = mesh["bob"]
    right = bob.host.read(CONFLIST)
    agent_of(bob).container("cni").signal(signal.SIGSTOP)  # or it would repair the list before it ends
    bob.host.write(CONFLIST, right.replace(bob.pod_cidr, "10.99.0.0/24"))
    try:
        with changed(mesh, "cni", **settings) as container:
            says(container, "cannot write")
            return container.log()
    finally:
        wait_until(lambda: bob.host.read(CONFLIST) == right, 20, "the list is right again")


def test_cni_needs_to_be_user_0(mesh: Mesh) -> None:
    assert "Permission denied" in unwritable(mesh, user=11074, group=11074)


def test_cni_needs_its_directory(mesh: Mesh) -> None:
    with changed(mesh, "cni", **without(mesh, "cni", "/etc/cni/net.d")) as container:
        says(container, "cannot write /etc/cni/net.d")


def test_after_all_that_the_mesh_is_well(mesh: Mesh) -> None:
    wait_until(lambda: well(mesh["bob"]), 30, "bob is well")
    assert mesh.unanswered(30) == []
