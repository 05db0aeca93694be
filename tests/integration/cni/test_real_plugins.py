"""Pods attached with the real plugins through the list that was written."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilo.cni.conflist import fresh, with_pod_cidr
from kilo.model.plan import CniTarget
from tests.cni_runtime import Attachment, addresses, attach, detach
from tests.unit.cni.test_conflist import MANIFEST

TARGET = CniTarget("10.2.3.0/24", 1380)
SIX = CniTarget("2001:db8:2:3::/64", 1380)


PING = """
import socket, struct, sys
family, protocol, kind = {4: (socket.AF_INET, socket.IPPROTO_ICMP, 8),
                          6: (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128)}[int(sys.argv[1])]
raw = socket.socket(family, socket.SOCK_RAW, protocol)
raw.settimeout(0.5)
sent = struct.pack("!BBHHH", kind, 0, 0xFFFF - (kind << 8) - 0x4B00 - 1, 0x4B00, 1)
for _ in range(20):
    try:
        raw.sendto(sent, (sys.argv[2], 0))
        while True:
            got, who = raw.recvfrom(2048)
            if who[0] == sys.argv[2] and got[-4:] == sent[-4:] and got[-8] in (0, 129):
                sys.exit(0)
    except OSError:
        pass
sys.exit("no answer from " + sys.argv[2])
"""


def ping(netns: str, target: str) -> None:
    version = str(ipaddress.ip_address(target).version)
    command = ["ip", "netns", "exec", netns, sys.executable, "-c", PING, version, target]
    subprocess.run(command, check=True)


def ip(*arguments: str, netns: str = "") -> str:
    command = ["ip", *(["-n", netns] if netns else []), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    names = [f"kgt-{os.getpid()}-{role}" for role in ("host", "pod0", "pod1")]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "set", "lo", "up", netns=names[0])
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def existing(target: CniTarget, before: bytes = MANIFEST) -> bytes:
    content = with_pod_cidr(before, target.pod_cidr)
    assert content is not None
    return content


OLD_STYLE = MANIFEST.replace(
    b'"host-local"',
    b'"host-local", "subnet": "10.42.2.0/24", "rangeStart": "10.42.2.9", "gateway": "10.42.2.254", '
    b'"routes": [{"dst": "192.0.2.0/24"}]',
)
OLD_STYLE_INSIDE = MANIFEST.replace(b'"host-local"', b'"host-local", "subnet": "10.2.3.0/24"')


@pytest.mark.parametrize(
    ("content", "target"),
    [
        (fresh(TARGET), TARGET),
        (existing(TARGET), TARGET),
        (existing(TARGET, OLD_STYLE), TARGET),
        (existing(TARGET, OLD_STYLE_INSIDE), TARGET),
        (fresh(SIX), SIX),
    ],
    ids=["fresh", "existing", "old style", "old style of the pod CIDR", "ipv6"],
)
def test_pods_get_addresses_of_the_pod_cidr_and_reach_the_bridge_and_one_another(
    namespaces: list[str], tmp_path: Path, content: bytes, target: CniTarget
) -> None:
    host, *pods = namespaces
    conflist = tmp_path / "10-kilo.conflist"
    conflist.write_bytes(content)
    network = ipaddress.ip_network(target.pod_cidr)
    gateway = str(network[1])
    attachments = [
        Attachment(conflist, pod, container_id=pod, host=host, data_dir=str(tmp_path / "leases"))
        for pod in pods
    ]
    results = [addresses(attach(attachment)) for attachment in attachments]
    own = [ipaddress.ip_interface(result[0]) for result in results]
    assert [len(result) for result in results] == [1, 1]
    assert all(address.ip in network and address.network == network for address in own)
    for pod in pods:
        family = f"-{network.version}"
        assert f"default via {gateway}" in ip(family, "route", netns=pod)
        for target_ip in (gateway, str(own[0].ip), str(own[1].ip)):
            if target_ip not in ip("address", netns=pod):
                ping(pod, target_ip)
    bridge = json.loads(ip("-j", "link", "show", "kube-bridge", netns=host))
    assert bridge[0]["mtu"] == (target.mtu if content == fresh(target) else 1420)
    for attachment in attachments:
        detach(attachment)
    assert "eth0" not in ip("link", netns=pods[0])


def test_a_port_mapping_is_passed_to_the_plugin_that_can(namespaces: list[str], tmp_path: Path) -> None:
    host, pod, _ = namespaces
    conflist = tmp_path / "10-kilo.conflist"
    conflist.write_bytes(fresh(TARGET))
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    attachment = Attachment(
        conflist,
        pod,
        container_id=pod,
        host=host,
        data_dir=str(tmp_path / "leases"),
        runtime_config={"portMappings": [mapping]},
    )
    attach(attachment)
    rules = ["ip", "netns", "exec", host, "iptables-save", "-t", "nat"]
    saved = subprocess.run(rules, check=True, capture_output=True, text=True).stdout
    assert "--dport 8080 -j DNAT --to-destination 10.2.3.2:80" in saved
    detach(attachment)
