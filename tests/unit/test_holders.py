"""Who has a socket, by the kernel's word."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from kilo.holders import Listener, UdpSocket, command, listener, name, processes, tcp_listeners, udp_sockets


def test_a_udp_port_leads_to_the_process_that_has_it() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other,
    ):
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        other.bind(("::1", port))
        found = set(udp_sockets(port))
        assert found == {UdpSocket(os.geteuid(), os.fstat(s.fileno()).st_ino) for s in (one, other)}
        inodes = {s.inode for s in found}
        assert list(processes(inodes)) == [str(os.getpid())]
        assert list(processes(inodes, work=-1.0)) == list(processes(inodes, patience=-1.0)) == []
        assert list(processes({1})) == []
    assert not list(udp_sockets(port))


def test_tcp_listener_is_found_and_a_connection_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert tcp_listeners(port) == {os.fstat(server.fileno()).st_ino}
            assert tcp_listeners(client.getsockname()[1]) == set()
    assert tcp_listeners(port) == set()


def test_what_a_process_is_called() -> None:
    words = [sys.executable, "-c", "print(flush=True); input()", "\x1b[31m"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # until then it may have no command line yet
        pid = str(process.pid)
        assert "python" in command(pid) and command(pid).endswith("?[31m")
        assert name(pid) == Path(f"/proc/{pid}/comm").read_text().strip()
        process.communicate(b"\n")
    assert command(pid) == "gone"


def test_who_listens_on_a_path_or_an_abstract_name(tmp_path: Path) -> None:
    for path in (tmp_path / "socket", f"\0kg-test-{os.getpid()}"):
        assert listener(path) is None
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            assert listener(path) is None, "it does not listen yet"
            server.listen()
            assert listener(path) == Listener(os.getpid(), os.geteuid())
        assert listener(path) is None
