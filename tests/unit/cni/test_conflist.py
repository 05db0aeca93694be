"""The list as text: the pod CIDR goes in, and not a byte of any other value changes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.cni.conflist import check_target, fresh, with_pod_cidr
from kilo.errors import ProtocolError
from kilo.model.plan import CniTarget

CIDR = "10.2.3.0/24"
RANGES = [[{"subnet": CIDR}]]

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
    assert written(b'{"plugins":[{"ipam":{}}]}').decode().splitlines()[1] == '  "plugins": ['


def test_values_survive_as_they_are_written() -> None:
    text = (
        '{"z": 1e3, "a": 123456789012345678901234567890, "plugins": [{"ipam": {"x": 1.50, '
        '"ranges": [], "y": -0, "u": "\\u00e9é/\\/"}, "n": null}], "e": [], "o": {}, "m": 1E-400}'
    )
    after = written(text.encode()).decode()
    values = ("1e3", "123456789012345678901234567890", "1.50", "-0", '"\\u00e9é/\\/"', "null", "1E-400")
    assert [after.count(value) for value in values] == [1] * len(values)
    assert list(json.loads(after)) == ["z", "a", "plugins", "e", "o", "m"]
    assert list(json.loads(after)["plugins"][0]["ipam"]) == ["x", "ranges", "y", "u"]


def test_every_plugin_with_ipam_is_set_and_no_other() -> None:
    text = b'{"plugins": [{"ipam": {"ranges": 1e999}}, {"type": "tuning"}, {"ipam": {"ranges": "no"}}]}'
    plugins = json.loads(written(text))["plugins"]
    assert plugins == [{"ipam": {"ranges": RANGES}}, {"type": "tuning"}, {"ipam": {"ranges": RANGES}}]


def test_ranges_that_say_more_than_the_cidr_are_replaced() -> None:
    text = json.dumps({"plugins": [{"ipam": {"ranges": [[{"subnet": CIDR, "gateway": "10.2.3.9"}]]}}]})
    assert json.loads(written(text.encode()))["plugins"][0]["ipam"]["ranges"] == RANGES


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
        (b"{}", "no plugins"),
        (b'{"plugins": {}}', "plugins is not a list"),
        (b'{"plugins": null}', "plugins is not a list"),
        (b'{"plugins": ["bridge"]}', "plugin 0 is not an object"),
        (b'{"plugins": [{}, {"ipam": "host-local"}]}', "ipam of plugin 1 is not an object"),
        (b'{"plugins": []}', "no plugin has ipam"),
        (b'{"plugins": [{"type": "bridge"}]}', "no plugin has ipam"),
    ],
)
def test_what_is_no_list_is_refused_with_the_reason(text: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        with_pod_cidr(text, CIDR)


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


@given(document=st.dictionaries(st.text(), _JSON, max_size=4), ipam=st.dictionaries(st.text(), _JSON))
def test_any_document_keeps_all_but_the_ranges(document: dict[str, Any], ipam: dict[str, Any]) -> None:
    document["plugins"] = [{"type": "bridge", "ipam": ipam}]
    text = json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        after = with_pod_cidr(text, CIDR)
    except ProtocolError:
        with pytest.raises((UnicodeDecodeError, msgspec.DecodeError)):
            msgspec.json.decode(text)
        return
    ipam["ranges"] = RANGES
    assert json.loads(text if after is None else after) == document
