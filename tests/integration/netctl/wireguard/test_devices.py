"""The adapters of a WireGuard device: wireguard-go itself over UAPI, and the kernel's messages.

This kernel may have no WireGuard: what is sent to it is read by pyroute2 here, and the other way
round; tests/vm has a kernel that has it.
"""

from __future__ import annotations

import base64
import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kilo.errors import TemporaryError
from kilo.model.keys import ZERO
from kilo.netctl.wireguard import kernel, uapi
from kilo.netctl.wireguard.device import DeviceRefused, DeviceState, Parsed, PeerChange, PeerState, one_by_one
from kilo.netctl.wireguard.uapi import Userspace
from tests.clock import Given
from tests.integration.netctl.hosts import SOCKETS, Host, stopped
from tests.integration.netctl.wireguard.contract import FULL, FULL_STATE, KEY, DeviceContract
from tests.unit.netctl.plans import key


@pytest.fixture
def device(wireguard_go: str) -> Iterator[Userspace]:
    with contextlib.closing(Userspace(wireguard_go)) as made:
        yield made


class TestUserspace(DeviceContract):
    """wireguard-go."""

    @pytest.fixture
    def interface(self, wireguard_go: str) -> str:
        return wireguard_go


def test_a_device_that_went_and_came_back_is_reached_again(wireguard_go: str, device: Userspace) -> None:
    device.change([FULL])
    (SOCKETS / f"{wireguard_go}.sock").unlink()
    with pytest.raises(TemporaryError, match="nothing answers at /run/wireguard"):
        for _ in range(500):
            device.read()
            threading.Event().wait(0.01)
    assert not uapi.answers(wireguard_go)
    other = subprocess.Popen(
        ["wireguard-go", "-f", wireguard_go], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(500):
            if uapi.answers(wireguard_go):
                break
            threading.Event().wait(0.01)
        assert device.read().peers == {}
    finally:
        other.kill()
        other.wait()


def took(work: Callable[[], object]) -> float:
    """The seconds until ``work`` failed for want of an answer."""
    with Given() as clock, pytest.raises(TemporaryError, match="does not answer"):
        work()
    return clock.seconds


def exchanges_of(device: Userspace, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that ``device`` asks from now on."""
    asked: list[str] = []
    exchange = device._exchange

    def noted(question: str) -> str:
        asked.append(question)
        return exchange(question)

    monkeypatch.setattr(device, "_exchange", noted)
    return asked


def answered(device: Userspace) -> None:
    """Wait until something has come that nobody has read."""
    assert device._socket is not None
    assert select.select([device._socket], [], [], 10.0)[0], "the late answer"


@pytest.mark.timing
def test_a_device_that_does_not_answer_costs_one_second_once(
    wireguard_go: str, device: Userspace, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pid,) = host.programs()
    device.configure(KEY, 51820)
    changes = [PeerChange(key(n), allowed_ips=(f"10.2.{n}.0/24",)) for n in range(1, 51)]
    exchanges = exchanges_of(device, monkeypatch)
    with stopped(pid):
        assert took(lambda: device.change(changes)) < 1.3
        assert len(exchanges) == 1, "the batch fails as a whole"
        assert took(device.read) < 0.1, "and so does what comes while the answer is owed"
        assert took(lambda: device.change(changes[:2])) < 0.1
        assert len(exchanges) == 1, "and nothing more is asked"
    answered(device)
    assert len(device.read().peers) == 50, "what it was told is done, and the late answer is nobody's"
    assert device.change([PeerChange(key(1), remove=True)]) == [""]
    assert len(device.read().peers) == 49


@pytest.mark.timing
def test_a_late_answer_is_taken_by_who_asks_the_same_again(
    wireguard_go: str, device: Userspace, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is so slow that no answer comes in time would never get one."""
    device.configure(KEY, 51820)
    with stopped(host.programs()[0]):
        took(device.read)
    answered(device)
    exchanges = exchanges_of(device, monkeypatch)
    assert device.read().private_key == KEY
    assert exchanges == []
    assert device.read().private_key == KEY
    assert exchanges == ["get=1\n\n"]


@pytest.mark.timing
def test_a_device_that_dies_while_an_answer_is_owed_is_reached_again(
    wireguard_go: str, device: Userspace, host: Host
) -> None:
    (pid,) = host.programs()
    with stopped(pid):
        took(device.read)
        os.kill(pid, signal.SIGKILL)
    for _ in range(500):
        if not uapi.answers(wireguard_go):
            break
        threading.Event().wait(0.01)
    with pytest.raises(TemporaryError, match="nothing answers at"):
        device.read()


def serve(path: Path, answer: bytes) -> threading.Thread:
    """Somebody who answers one question with ``answer`` and closes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def once() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(answer)

    thread = threading.Thread(target=once)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"errno=-13\n\n", "Permission denied"),
        (b"listen_port=x\nerrno=0\n\n", "makes no sense"),
        (b"public_key=00\nerrno=0\n\n", "makes no sense"),
        (b"public_key=" + b"00" * 32 + b"\nallowed_ip=10.0.0.0\nerrno=0\n\n", "makes no sense"),
        (b"private_key=", "connection closed"),
    ],
)
def test_answers_that_make_no_sense_are_errors(tmp_path: Path, answer: bytes, error: str) -> None:
    device = Userspace("none")
    device._path = str(tmp_path / "x.sock")
    server = serve(tmp_path / "x.sock", answer)
    with pytest.raises(TemporaryError, match=error):
        device.read()
    server.join()
    device.close()


def test_one_by_one_isolates_the_refused_of_a_part() -> None:
    sent: list[list[str]] = []

    def send(changes: Any) -> None:
        names = [change.public_key for change in changes]
        sent.append(names)
        if "b" in names:
            raise DeviceRefused("no b")

    changes = [PeerChange(name, allowed_ips=("x",) * 6) for name in "abcde"]
    assert one_by_one(changes, 20, send) == ["", "no b", "", "", ""]
    assert sent == [["a", "b"], ["a"], ["b"], ["c", "d"], ["e"]]


def test_one_by_one_asks_nobody_who_does_not_answer() -> None:
    sent: list[int] = []

    def send(changes: Any) -> None:
        sent.append(len(changes))
        raise TemporaryError("no answer")

    with pytest.raises(TemporaryError, match="no answer"):
        one_by_one([PeerChange(name) for name in "abcde"], 100, send)
    assert sent == [5]


# The kernel's messages, with pyroute2 on the other side.


def to_pyroute2(attributes: bytes) -> Any:
    from pyroute2.netlink.generic.wireguard import wgmsg

    body = struct.pack("=BBH", 1, 1, 0) + attributes
    message = wgmsg(struct.pack("=IHHII", 16 + len(body), 30, 0, 0, 0) + body)
    message.decode()
    return message


def test_what_is_sent_to_the_kernel() -> None:
    six = PeerChange(key(2), replace=True, endpoint=("2001:db8::1", 7))
    (peers,) = kernel.render([FULL, six, PeerChange(key(3), remove=True)])
    from kilo.netctl.netlink.attributes import nested

    first, second, third = to_pyroute2(nested(8, *peers)).get_attr("WGDEVICE_A_PEERS")
    assert first.get_attr("WGPEER_A_PUBLIC_KEY").decode() == key(1)
    assert first.get_attr("WGPEER_A_PRESHARED_KEY").decode() == key(9)
    assert first.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") == 25
    endpoint = first.get_attr("WGPEER_A_ENDPOINT")
    assert (endpoint["addr"], endpoint["port"]) == ("198.51.100.1", 51820)
    assert [a["addr"] for a in first.get_attr("WGPEER_A_ALLOWEDIPS")] == list(FULL.allowed_ips)
    assert first.get_attr("WGPEER_A_FLAGS") is None
    endpoint = second.get_attr("WGPEER_A_ENDPOINT")
    assert (endpoint["addr"], endpoint["port"]) == ("2001:db8::1", 7)
    assert second.get_attr("WGPEER_A_FLAGS") == 2
    assert third.get_attr("WGPEER_A_FLAGS") == 1


def test_messages_to_the_kernel_stay_below_their_limit() -> None:
    many = tuple(f"10.{64 + n // 250}.{n % 250}.0/24" for n in range(2500))
    messages = list(kernel.render([PeerChange(key(1), replace=True, allowed_ips=many, keepalive=1)]))
    assert len(messages) == 5
    assert all(sum(map(len, peers)) < 32_000 for peers in messages)
    assert sum(peer.count(b"\x08\0\x02\0") for peers in messages for peer in peers) == 2500
    parts: list[Any] = []
    assert one_by_one(
        [PeerChange(key(n), allowed_ips=many[:9]) for n in range(200)], kernel.CHUNK, parts.append
    )
    assert all(sum(map(len, *kernel.render(part))) < 32_000 for part in parts)


def test_what_the_kernel_says() -> None:
    from pyroute2.netlink.generic.wireguard import wgmsg

    def told(*peers: list[tuple[str, Any]], **device: Any) -> bytes:
        message = wgmsg()
        message["cmd"], message["version"] = 0, 1
        message["attrs"] = [(f"WGDEVICE_A_{name}", value) for name, value in device.items()]
        message["attrs"].append(("WGDEVICE_A_PEERS", [{"attrs": peer} for peer in peers]))
        message.encode()
        return bytes(message.data)

    def ips(*networks: tuple[int, bytes, int]) -> list[Any]:
        return [
            {
                "attrs": [
                    ("WGALLOWEDIP_A_FAMILY", f),
                    ("WGALLOWEDIP_A_IPADDR", a),
                    ("WGALLOWEDIP_A_CIDR_MASK", b),
                ]
            }
            for f, a, b in networks
        ]

    one = [
        ("WGPEER_A_PUBLIC_KEY", key(1)),
        ("WGPEER_A_PRESHARED_KEY", key(9)),
        ("WGPEER_A_ENDPOINT", {"addr": "198.51.100.1", "port": 51820}),
        ("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", 25),
        ("WGPEER_A_LAST_HANDSHAKE_TIME", {"tv_sec": 1_700_000_000, "tv_nsec": 5}),
        ("WGPEER_A_RX_BYTES", 10),
        ("WGPEER_A_TX_BYTES", 1 << 40),
        ("WGPEER_A_ALLOWEDIPS", ips((2, bytes([10, 2, 1, 0]), 24))),
    ]
    continued = [
        ("WGPEER_A_PUBLIC_KEY", key(1)),
        ("WGPEER_A_ALLOWEDIPS", ips((10, socket.inet_pton(10, "fd00:1::"), 64))),
    ]
    two = [
        ("WGPEER_A_PUBLIC_KEY", key(2)),
        ("WGPEER_A_PRESHARED_KEY", ZERO),
        ("WGPEER_A_ENDPOINT", {"addr": "2001:db8::1", "port": 7}),
    ]
    state = DeviceState()
    private = base64.b64encode(KEY.reveal()).decode()
    messages = told(one, PRIVATE_KEY=private, LISTEN_PORT=51820), told(continued, two)
    parsed: Parsed[bytes] = {}
    for data in messages:
        parsed |= kernel.parse_device(state, data, 20, len(data), {})
    assert state.private_key == KEY and state.listen_port == 51820
    assert state.peers == {
        key(1): FULL_STATE._replace(last_handshake=1_700_000_000, received_bytes=10, sent_bytes=1 << 40),
        key(2): PeerState(frozenset(), ("2001:db8::1", 7)),
    }
    again = DeviceState()
    for data in messages:
        kernel.parse_device(again, data, 20, len(data), parsed)
    assert again == state and again.peers[key(2)] is state.peers[key(2)]


def test_a_kernel_without_wireguard_says_so(host: Host) -> None:
    if os.path.isdir("/sys/module/wireguard"):
        with (
            pytest.raises(TemporaryError, match="ENODEV"),
            contextlib.closing(kernel.Kernel("none")) as device,
        ):
            device.read()
    else:
        with pytest.raises(TemporaryError, match="ENOENT"):
            kernel.Kernel(host.interface)
