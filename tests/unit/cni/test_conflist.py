"""The list as text: the pod CIDR goes in, and not a byte of any other value changes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.cni.conflist import check_target, fresh, other_ipam, with_pod_cidr
from kilo.errors import ProtocolError
from kilo.model.plan import CniTarget

CIDR = "10.2.3.0/24"
RANGES = [[{"subnet": CIDR}]]
RANGE_KEYS = ("subnet", "rangestart", "rangeend", "gateway", "ranges")

MANIFEST = b"""{
   "cniVersion":"0.4.0",
   "name":"kilo",
   "plugins":[
      {
         "name":"kubernetes",
         "type":"bridge",
         "bridge":"kube-bridge",
         "isDefaultGateway":true,
         "forceAddress":true,
         "mtu": 1420,
         "ipam":{
            "type":"host-local"
         }
      },
      {
         "type":"portmap",
         "snat":true,
         "capabilities":{
            "portMappings":true
         }
      }
   ]
}
"""


def written(text: bytes, cidr: str = CIDR) -> bytes:
    result = with_pod_cidr(text, cidr)
    assert result is not None
    return result


def test_the_go_projects_list_gets_the_pod_cidr_and_keeps_the_rest() -> None:
    before, after = json.loads(MANIFEST), json.loads(written(MANIFEST))
    before["plugins"][0]["ipam"]["ranges"] = RANGES
    assert after == before


def test_what_was_written_needs_no_writing_again() -> None:
    assert with_pod_cidr(written(MANIFEST), CIDR) is None


def test_it_stays_readable_and_keeps_the_indentation() -> None:
    lines = written(MANIFEST).decode().splitlines()
    assert lines[1] == '   "cniVersion": "0.4.0",'
    compact = b'{"name":"n","plugins":[{"type":"bridge","ipam":{"type":"host-local"}}]}'
    assert written(compact).decode().splitlines()[1] == '  "name": "n",'


def test_values_survive_as_they_are_written() -> None:
    text = (
        '{"z": 1e3, "a": 123456789012345678901234567890, "plugins": [{"type": "bridge", "ipam": {"x": 1.50, '
        '"type": "host-local", "ranges": [], "y": -0, "u": "\\u00e9é/\\/"}, "n": null}], "e": [], "o": {}, '
        '"m": 1E-400, "name": "n"}'
    )
    after = written(text.encode()).decode()
    values = ("1e3", "123456789012345678901234567890", "1.50", "-0", '"\\u00e9é/\\/"', "null", "1E-400")
    assert [after.count(value) for value in values] == [1] * len(values)
    assert list(json.loads(after)) == ["z", "a", "plugins", "e", "o", "m", "name"]
    assert list(json.loads(after)["plugins"][0]["ipam"]) == ["x", "type", "ranges", "y", "u"]


def listed(*plugins: dict[str, Any], **head: Any) -> bytes:
    return json.dumps({"cniVersion": "0.4.0", "name": "kilo", **head, "plugins": plugins}).encode()


def bridge(**ipam: Any) -> dict[str, Any]:
    return {"type": "bridge", "ipam": {"type": "host-local", **ipam}}


def test_every_plugin_with_host_local_is_set_and_no_other() -> None:
    odd = msgspec.json.decode(b"1e300")
    plugins = [bridge(ranges=odd), {"type": "tuning"}, bridge(ranges="no"), {"type": "macvlan", "ipam": {}}]
    after = json.loads(written(listed(*plugins)))["plugins"]
    assert after == [bridge(ranges=RANGES), {"type": "tuning"}, bridge(ranges=RANGES), plugins[3]]


def test_ranges_that_say_more_than_the_cidr_are_replaced() -> None:
    text = listed(bridge(ranges=[[{"subnet": CIDR, "gateway": "10.2.3.9"}]]))
    assert json.loads(written(text))["plugins"] == [bridge(ranges=RANGES)]


@pytest.mark.parametrize(
    "old",
    [
        {"subnet": "10.42.2.0/24"},
        {"subnet": CIDR},
        {
            "subnet": "10.42.2.0/24",
            "rangeStart": "10.42.2.9",
            "rangeEnd": "10.42.2.20",
            "gateway": "10.42.2.1",
        },
        {"ranges": RANGES, "subnet": "10.42.2.0/24"},
        {"ranges": RANGES, "gateway": "10.42.2.1"},
        {"SubNet": "10.42.2.0/24", "Ranges": [[{"subnet": "10.42.2.0/24"}]]},
    ],
)
def test_ipam_old_style_range_goes_and_the_rest_stays(old: dict[str, Any]) -> None:
    others = {"routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/leases", "resolvConf": "/etc/resolv.conf"}
    text = written(listed(bridge(**old, **others)))
    assert json.loads(text)["plugins"] == [bridge(**others, ranges=RANGES)]
    assert with_pod_cidr(text, CIDR) is None


@pytest.mark.parametrize("other", ["dhcp", "static", "calico-ipam"])
def test_ipam_other_type_is_left_alone_and_named(other: str) -> None:
    text = listed({"type": "macvlan", "ipam": {"type": other, "subnet": "10.42.2.0/24"}})
    assert with_pod_cidr(text, CIDR) is None
    assert other_ipam(text) == [f"plugin 0 (macvlan) has ipam of type {other}"]
    assert other_ipam(listed(bridge(), {"type": "tuning"})) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (MANIFEST + b"}", "not JSON"),
        (b'{"plugins": [{"ipam": {"a": "\xff"}}]}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "it is not an object"),
        (b'"plugins"', "it is not an object"),
        (b"{}", 'no name.*: give it "name": "kilo"'),
        (listed(bridge(), name=""), "no name"),
        (listed(bridge(), name=None), "no name"),
        (listed(bridge(), name=7), "its name 7 is refused"),
        (listed(bridge(), name="a b"), "its name 'a b' is refused"),
        (listed(bridge(), name="-a"), "its name '-a' is refused"),
        (listed(bridge(), name="a/../b"), "its name 'a/../b' is refused"),
        (listed(bridge(), name="kilo\n"), "its name .* is refused"),
        (listed(bridge(), cniVersion=0.4), "its cniVersion 0.4 is none that plugins know: write one of"),
        (listed(bridge(), cniVersion=None), "its cniVersion None"),
        (listed(bridge(), cniVersion="0.4"), "its cniVersion '0.4'"),
        (listed(bridge(), cniVersion="v0.4.0"), "its cniVersion 'v0.4.0'"),
        (listed(bridge(), cniVersion="0.5.0"), "its cniVersion '0.5.0'"),
        (listed(bridge(), disableCheck=1), "its disableCheck 1"),
        (listed(bridge(), disableCheck="no"), "its disableCheck 'no'"),
        (b'{"name": "n"}', "no plugins"),
        (b'{"name": "n", "type": "bridge", "ipam": {"type": "host-local"}}', "no plugins"),
        (b'{"name": "n", "plugins": {}}', "plugins is not a list"),
        (b'{"name": "n", "plugins": null}', "plugins is not a list"),
        (b'{"name": "n", "plugins": ["bridge"]}', "plugin 0 is not an object"),
        (
            listed(bridge(), {"type": "ptp", "ipam": "host-local"}),
            r"ipam of plugin 1 \(ptp\) is not an object",
        ),
        (listed(), "plugins is empty"),
        (listed({"type": "bridge"}), 'no plugin has ipam: give the first "ipam"'),
        (listed({"type": "bridge", "ipam": {}}), "no plugin has ipam"),
        (listed(bridge(), {}), "plugin 1 has no type"),
        (listed({"type": "", "ipam": {"type": "host-local"}}), "plugin 0 has no type"),
        (listed({"type": 1, "ipam": {"type": "host-local"}}), "plugin 0 is refused.*`int` - at `\\$.type`"),
        (listed({"type": "bridge", "ipam": {"subnet": CIDR}}), r"ipam of plugin 0 \(bridge\) has no type"),
        (listed({"type": "bridge", "ipam": {"type": 1}}), "is refused.*`int` - at `\\$.ipam.type`"),
        (listed({**bridge(), "capabilities": {"portMappings": "yes"}}), "refused.*capabilities"),
        (listed({**bridge(), "cniVersion": 1}), "refused.*cniVersion"),
    ],
)
def test_what_is_no_list_is_refused_with_the_reason(text: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        with_pod_cidr(text, CIDR)


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"cniVersion": ""},
        {"cniVersion": "1.1.0"},
        {"cniVersion": "1.2.0"},
        {"name": "k8s.pod_network-1"},
        {"disableCheck": True},
    ],
)
def test_list_that_the_runtime_accepts_is_set(head: dict[str, Any]) -> None:
    assert json.loads(written(listed(bridge(), **head)))["plugins"] == [bridge(ranges=RANGES)]


@pytest.mark.parametrize("more", [{"ipam": None}, {"capabilities": {"portMappings": None}}])
def test_list_with_null_in_a_plugin_is_read_as_if_the_key_were_not_there(more: dict[str, Any]) -> None:
    chained = {"type": "portmap", **more}
    plugins = json.loads(written(listed(bridge(), chained)))["plugins"]
    assert plugins == [bridge(ranges=RANGES), chained]


def test_list_without_version_is_set_as_the_plugins_read_it() -> None:
    assert with_pod_cidr(
        b'{"name": "n", "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}]}', CIDR
    )


def test_the_fresh_list() -> None:
    document = json.loads(fresh(CniTarget(CIDR, 1380)))
    bridge, portmap = document["plugins"]
    assert (document["cniVersion"], document["name"]) == ("0.4.0", "kilo")
    assert bridge == {
        "type": "bridge",
        "bridge": "kube-bridge",
        "isDefaultGateway": True,
        "forceAddress": True,
        "mtu": 1380,
        "ipam": {"type": "host-local", "ranges": RANGES},
    }
    assert portmap == {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
    assert with_pod_cidr(fresh(CniTarget(CIDR, 1380)), CIDR) is None


@pytest.mark.parametrize("cidr", ["10.2.3.0/24", "10.2.0.0/30", "2001:db8::/64", "10.0.0.0/8"])
def test_pod_cidrs_that_serve(cidr: str) -> None:
    check_target(CniTarget(cidr, 1420))


@pytest.mark.parametrize(
    ("cidr", "mtu"),
    [
        ("", 1420),
        ("10.2.3.0", 1420),
        ("10.2.3.1/24", 1420),
        ("10.2.3.0/33", 1420),
        ("10.2.3.0/31", 1420),
        ("10.2.3.4/32", 1420),
        ("0.0.0.0/0", 1420),
        ('10.2.3.0/24"}', 1420),
        ("2001:DB8::/64", 1420),
        ("10.2.3.0/24", 0),
        ("10.2.3.0/24", 65536),
    ],
)
def test_targets_that_are_refused(cidr: str, mtu: int) -> None:
    with pytest.raises(ProtocolError):
        check_target(CniTarget(cidr, mtu))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    document=st.dictionaries(st.text(), _JSON, max_size=4),
    ipam=st.dictionaries(st.text().filter(lambda key: key.lower() not in RANGE_KEYS), _JSON),
)
def test_any_document_keeps_all_but_the_ranges(document: dict[str, Any], ipam: dict[str, Any]) -> None:
    ipam["type"] = "host-local"
    document.update(
        cniVersion="1.0.0", name="n", disableCheck=False, plugins=[{"type": "bridge", "ipam": ipam}]
    )
    text = json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        after = with_pod_cidr(text, CIDR)
    except ProtocolError:
        with pytest.raises((UnicodeDecodeError, msgspec.DecodeError)):
            msgspec.json.decode(text)
        return
    ipam["ranges"] = RANGES
    assert json.loads(text if after is None else after) == document
