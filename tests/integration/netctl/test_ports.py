"""Who has a UDP port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from kilo.netctl import ports
from tests.integration.netctl.hosts import Host, ip


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_is_taken_by_either_family(host: Host, family: socket.AddressFamily, address: str) -> None:
    assert ports.is_free(51820)
    with socket.socket(family, socket.SOCK_DGRAM) as other:
        other.bind((address, 51820))
        assert not ports.is_free(51820) and ports.is_free(51821)
    assert ports.is_free(51820)


def test_nobody_has_a_free_port(host: Host) -> None:
    assert ports.Holder().of(51820) == ""


def test_a_process_is_named_and_looked_for_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = ports.Holder()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
        other.bind(("::", 51820))
        who = holder.of(51820)
        assert who.startswith(f"pid {os.getpid()} (") and "python" in who
        monkeypatch.setattr(ports, "_SEARCH", -1.0)
        assert holder.of(51820) == who
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 51820))
        assert holder.of(51820).startswith("the user root: a process that netctl may not look at")


def test_control_characters_of_a_command_line_go_nowhere(host: Host) -> None:
    bind = "import socket,time; s=socket.socket(2,2); s.bind(('0.0.0.0',51820))"
    code = f"{bind}; print(flush=True); time.sleep(9)"
    with subprocess.Popen([sys.executable, "-c", code, "\x1b[31m"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        who = ports.Holder().of(51820)
        process.kill()
    assert who.startswith(f"pid {process.pid} (") and "\x1b" not in who and len(who) < 130


def test_a_socket_of_the_kernels_own_is_no_process(host: Host) -> None:
    """VXLAN has one, as WireGuard in the kernel has."""
    ip("link add vx0 type vxlan id 7 dstport 51820 dev lo")
    ip("link set vx0 up")
    assert not ports.is_free(51820)
    assert ports.Holder().of(51820).startswith("the user root: a process that netctl may not look at")
