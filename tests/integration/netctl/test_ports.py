"""Who has a UDP port."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kilo.errors import TemporaryError
from kilo.log import Logger
from kilo.netctl import ports
from kilo.netctl.netlink.messages import LinkInfo
from kilo.netctl.sole import Claim
from kilo.netctl.wireguard.device import DeviceState
from tests.feeding import eventually
from tests.integration.netctl.hosts import Host, ip, stopped


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_is_taken_by_either_family(host: Host, family: socket.AddressFamily, address: str) -> None:
    assert ports.is_free(51820)
    with socket.socket(family, socket.SOCK_DGRAM) as other:
        other.bind((address, 51820))
        assert not ports.is_free(51820) and ports.is_free(51821)
    assert ports.is_free(51820)


def test_nobody_has_a_free_port(host: Host) -> None:
    assert ports.Holder().of(51820) == ()


def test_a_process_is_named_and_looked_for_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = ports.Holder()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        other.bind(("::", 51820))
        (found,) = holder.of(51820)
        assert found.name.startswith(f"pid {os.getpid()} (") and "python" in found.name
        assert (found.link, found.pid) == ("", str(os.getpid()))
        assert "end that program" in found.remedy and "--port" in found.remedy
        monkeypatch.setattr(ports, "_SEARCH", -1.0)
        assert holder.of(51820) == (found,)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 51820))
        (hidden,) = holder.of(51820)
        assert hidden.name.startswith("a socket of the user root") and "cannot be seen" in hidden.name
        assert not hidden.seen and "--port" in hidden.remedy


def test_port_of_two_processes_names_both(host: Host) -> None:
    bind = "import socket,time; s=socket.socket({},2); s.bind(('{}',51820)); print(flush=True); time.sleep(9)"
    with contextlib.ExitStack() as stack:
        pids = set()
        for family, address in ((2, "127.0.0.1"), (10, "::1")):
            code = bind.format(family, address)
            started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            process = stack.enter_context(started)
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            pids.add(str(process.pid))
        assert {found.pid for found in ports.Holder().of(51820)} == pids


@contextlib.contextmanager
def wireguard_go(name: str, port: int) -> Iterator[None]:
    """wireguard-go with an interface that is up and has ``port``; it ends with the host."""
    subprocess.run(["wireguard-go", name], check=True, capture_output=True)
    subprocess.run(["wg", "set", name, "listen-port", str(port)], check=True)
    ip(f"link set {name} up")
    eventually(lambda: not ports.is_unheard_of(port), what=f"{name} has its port")
    yield


def test_a_second_wireguard_go_is_named_by_interface_and_process(host: Host) -> None:
    name = f"{host.interface}b"
    with wireguard_go(name, 51820):
        (pid,) = host.programs()
        (found,) = ports.Holder().of(51820)
        assert found.name == f"the WireGuard interface {name} of pid {pid} (wireguard-go {name})"
        assert found.link == name and f"ip link delete {name}" in found.remedy
        assert ports.Holder().of(51821) == ()


def test_a_wireguard_go_that_does_not_answer_is_named_by_process(host: Host) -> None:
    name = f"{host.interface}b"
    with wireguard_go(name, 51820):
        (pid,) = host.programs()
        with stopped(pid):
            (found,) = ports.Holder().of(51820)
        assert found.name == f"pid {pid} (wireguard-go {name})"


def test_an_interface_that_another_netctl_has_is_not_to_be_removed(host: Host) -> None:
    name = f"{host.interface}b"
    with wireguard_go(name, 51820), contextlib.closing(Claim(name, Logger("test", "error"))):
        (found,) = ports.Holder().of(51820)
        assert "delete" not in found.remedy
        assert f"an agent uses it (pid {os.getpid()})" in found.remedy and "--port" in found.remedy


class KernelDevice:
    """A device of the kernel's as ``open_device`` gives it, with a port."""

    def __init__(self, port: int) -> None:
        self._port = port

    def read(self) -> DeviceState:
        return DeviceState(listen_port=self._port)

    def close(self) -> None:
        return


def test_a_wireguard_interface_of_the_kernels_is_asked_for_its_port(host: Host) -> None:
    """No process has its socket. One that is down has none."""
    links = [
        LinkInfo(2, "wg-down", 1420, "wireguard", False),
        LinkInfo(3, "kilo0", 1420, "wireguard", True),
        LinkInfo(4, "wg-gone", 1420, "wireguard", True),
        LinkInfo(5, "wg1", 1420, "wireguard", True),
        LinkInfo(6, "eth0", 1500, "", True),
    ]
    asked = []

    def open_device(link: LinkInfo) -> KernelDevice:
        asked.append(link.name)
        if link.name == "wg-gone":
            raise TemporaryError("No such device")
        return KernelDevice({"kilo0": 51820, "wg1": 51821}.get(link.name, 51820))

    assert [link.name for link in ports.wireguard_links(links, 51820, open_device)] == ["kilo0"]  # type: ignore[arg-type]
    assert asked == ["kilo0", "wg-gone", "wg1"]


def test_a_tunnel_of_the_kernels_is_named(host: Host) -> None:
    """It has a socket without a process, as WireGuard in the kernel has."""
    ip("link add vx0 type vxlan id 7 dev lo dstport 51820")
    ip("link add vx1 type vxlan id 8 dev lo dstport 51821")
    assert ports.Holder().of(51820) == (), "it has no socket before it is up"
    ip("link set vx0 up")
    ip("link set vx1 up")
    assert not ports.is_free(51820)
    (found,) = ports.Holder().of(51820)
    assert (found.name, found.link) == ("the vxlan interface vx0", "vx0")
    assert "delete" not in found.remedy and "--port" in found.remedy


def test_control_characters_of_a_command_line_go_nowhere(host: Host) -> None:
    bind = "import socket,time; s=socket.socket(2,2); s.bind(('0.0.0.0',51820))"
    code = f"{bind}; print(flush=True); time.sleep(9)"
    with subprocess.Popen([sys.executable, "-c", code, "\x1b[31m"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        ((who, *_),) = ports.Holder().of(51820)
        process.kill()
    assert who.startswith(f"pid {process.pid} (") and "\x1b" not in who and len(who) < 130
