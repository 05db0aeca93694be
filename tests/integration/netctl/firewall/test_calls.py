"""Which system calls either firewall makes, seen from outside; and a host without IPv6."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

import kilo
from kilo.netctl.firewall.choice import Kind
from tests.integration.netctl.firewall.hosts import Namespace

_START = """
import os, sys
from kilo.config import Config
from kilo.log import Logger
from kilo.model.plan import Firewall as Policy, SetEntry
from kilo.netctl.firewall import Firewall
firewall = Firewall(Config(firewall=sys.argv[1]), Logger("netctl", "none"))
items = [Policy(ipip_guard=True, forward=True)]
for n in range(int(sys.argv[2]) if len(sys.argv) > 2 else 50):
    for kind in ("no_masquerade_to", "masquerade_from", "ipip_accept_from", "forward_accept_to"):
        items += [SetEntry(kind, f"10.{n // 250}.{n % 250}.0/24"), SetEntry(kind, f"fd00:{n}::/64")]
firewall.update({item.key: item for item in items}, [])
"""
_CALLS = """
def say(what):
    os.write(2, what.encode())
def one(change):
    change()
    return firewall.apply() + firewall.prune()
say("first")
firewall.load()
assert one(lambda: None)
say("rest")
for _ in range(3):
    firewall.load()
    assert not one(lambda: None)
say("quiet")
assert not one(lambda: None)
say("more")
more = SetEntry("no_masquerade_to", "10.10.0.0/24")
assert [o.key for o in one(lambda: firewall.update({more.key: more}, []))] == ["kilo-no-masquerade-to-v4"]
say("less")
assert len(one(lambda: firewall.update({}, [more.key]))) == 1
say("end")
assert not [o for o in firewall.clean_up() if o.error]
"""
_MANY_TIMES = """
def pages():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1])
def go(times):
    for n in range(times):
        firewall.load()
        firewall.update({"firewall": Policy(ipip_guard=n % 20 > 9, forward=n % 30 > 14)}, [])
        assert not [o for o in firewall.apply() + firewall.prune() if o.error]
go(120)
before = pages()
go(600)
print((pages() - before) * os.sysconf("SC_PAGE_SIZE") // 1024)
"""
_WITHOUT_IPV6 = """
import ctypes, platform, socket, struct
call = {"x86_64": 41, "aarch64": 198}[platform.machine()]
def step(code, k, yes=0, no=0):
    return struct.pack("HBBI", code, yes, no, k)
program = b"".join([
    step(0x20, 0), step(0x15, call, 0, 3), step(0x20, 16), step(0x15, socket.AF_INET6, 0, 1),
    step(0x06, 0x00050000 | 97), step(0x06, 0x7FFF0000)])
kept = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(kept)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter, 0, 0) == 0
try:
    socket.socket(socket.AF_INET6)
    raise SystemExit("IPv6 is still there")
except OSError as e:
    assert e.errno == 97
firewall.load()
outcomes = firewall.apply() + firewall.prune()
assert not [o for o in outcomes if o.error], outcomes
print(sorted(o.key for o in outcomes if "v6" in o.key), len(outcomes))
"""
_TRACED = "trace=setsockopt,sendto,sendmsg,execve,clone,clone3,fork,vfork,write"
_TYPES = {"0x607": "LIST", "0x609": "ADD", "0x60a": "DEL", "0x603": "DESTROY"}
"""strace gives a message's type as a number or in words, as it happens to know the socket."""
_OF_A_NEW_SOCKET = re.compile(r"setsockopt\(\d+, SOL_(NETLINK|SOCKET)\b")
_MESSAGE = re.compile(r"(?:nlmsg_type=|NFT_MSG_|_CMD_|SO_SET_|NFNL_MSG_)(?!NFNL)(\w+)")


@pytest.fixture
def kind() -> Kind:
    """A test that names none is about the legacy firewall."""
    return "legacy"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(kilo.__file__).parents[1]))


@pytest.fixture
def nodes() -> int:
    """A test that names none is about 50."""
    return 50


@pytest.fixture
def phases(host: Namespace, tmp_path: Path, kind: Kind, nodes: int) -> dict[str, list[str]]:
    """What was called in each phase: names of calls, and types of netlink messages."""
    trace = tmp_path / "trace"
    program = (sys.executable, "-c", _START + _CALLS, kind, str(nodes))
    host.run("strace", "-f", "-v", "-o", str(trace), "-e", _TRACED, *program)
    result: dict[str, list[str]] = {}
    for line in trace.read_text().splitlines():
        if found := re.search(r'write\(2, "(\w+)"', line):
            result[found[1]] = []
        elif result and not _OF_A_NEW_SOCKET.search(line):
            calls = _MESSAGE.findall(line) or re.findall(r"^\S+ +(\w+)\(", line)
            result[list(result)[-1]] += [_TYPES.get(call, call) for call in calls]
    return result


def both(**expected: object) -> pytest.MarkDecorator:
    """Run a test for either firewall, with what is expected of it."""
    return pytest.mark.parametrize(("kind", "expected"), expected.items(), ids=list(expected))


@both(legacy={"LIST"}, nftables={"GETGEN"})
def test_at_rest_nothing_is_written_and_nothing_forked(
    phases: dict[str, list[str]], expected: set[str]
) -> None:
    assert set(phases["rest"]) == expected
    assert phases["quiet"] == []


@both(
    legacy=(["ADD"], ["DEL"]),
    nftables=(
        ["BATCH_BEGIN", "NEWSETELEM", "BATCH_END", "GETGEN"],
        ["BATCH_BEGIN", "DELSETELEM", "BATCH_END", "GETGEN"],
    ),
)
@pytest.mark.parametrize("nodes", [3, 1000])
def test_one_member_more_or_less_is_one_message(
    phases: dict[str, list[str]], expected: tuple[list[str], list[str]]
) -> None:
    assert (phases["more"], phases["less"]) == expected


def test_sets_are_filled_before_the_rules_and_removed_after_them(phases: dict[str, list[str]]) -> None:
    first, end = phases["first"], phases["end"]
    assert first.count("REPLACE") == 6
    assert max(i for i, call in enumerate(first) if call == "ADD") < first.index("REPLACE")
    assert end.count("REPLACE") == 6
    assert end.index("DESTROY") > max(i for i, call in enumerate(end) if call == "REPLACE")


@pytest.mark.parametrize("kind", ["nftables"])
def test_a_transaction_for_each_ip_version(phases: dict[str, list[str]]) -> None:
    first, end = phases["first"], phases["end"]
    assert first.count("BATCH_BEGIN") == first.count("BATCH_END") == first.count("NEWTABLE") == 2
    assert end.count("BATCH_BEGIN") == end.count("BATCH_END") == end.count("DELTABLE") == 2


@both(legacy=2 if os.path.exists("/proc/modules") else 0, nftables=0)
def test_the_first_write_forks_nothing_but_modprobe(phases: dict[str, list[str]], expected: int) -> None:
    assert phases["first"].count("execve") <= expected


@both(legacy="[] 9\n", nftables="[] 4\n")
def test_ipv6_that_is_off_is_no_error(host: Namespace, kind: Kind, expected: str) -> None:
    assert host.run(sys.executable, "-c", _START + _WITHOUT_IPV6, kind) == expected
    if kind == "legacy":
        assert "KILO-NAT" in host.run("iptables-legacy-save")
        assert host.run("ip6tables-legacy-save") == ""
    else:
        assert "table ip kilo" in host.run("nft", "list", "ruleset")
        assert "ip6" not in host.run("nft", "list", "ruleset")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["legacy", "nftables"])
def test_memory_does_not_grow(host: Namespace, kind: Kind) -> None:
    """600 times read, 80 times written; a table that leaked would be some 10 kB each time."""
    assert int(host.run(sys.executable, "-c", _START + _MANY_TIMES, kind)) < 1024
