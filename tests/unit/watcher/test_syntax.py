from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilo.errors import ProtocolError
from kilo.model.node import Endpoint, UDPAddress
from kilo.watcher.syntax import (
    discovered_endpoints,
    endpoint,
    integer,
    is_dns_name,
    unix_time,
    whole_seconds,
)

LARGEST, SMALLEST = (1 << 63) - 1, -(1 << 63)


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("25", 25), ("+5", 5), ("-5", -5), ("010", 10), ("0" * 30 + "7", 7)]
)
def test_a_number(text: str, value: int) -> None:
    assert integer(text) == (value, "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, 0) for text in ("", "x", "1_0", "0x10", " 5", "5 ", "1e3", "5.0", "--5", "٣", "+")),
        ("9223372036854775808", LARGEST),
        ("-9223372036854775809", SMALLEST),
        ("9" * 5000, LARGEST),
        ("-" + "9" * 5000, SMALLEST),
    ],
)
def test_what_counts_in_the_stead_of_a_number(text: str, value: int) -> None:
    taken, reason = integer(text)
    assert taken == value
    assert reason


@pytest.mark.parametrize(
    ("seconds", "out"), [(25, 25), (-25, -25), (LARGEST, -1), (SMALLEST, 0), (9223372036, 9223372036)]
)
def test_seconds_overflow_as_nanoseconds_do(seconds: int, out: int) -> None:
    assert whole_seconds(seconds) == out


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.1:51820", "10.0.0.1", 51820),
        ("[10.0.0.1]:1", "10.0.0.1", 1),
        ("[ff10::10]:51820", "ff10::10", 51820),
        ("[2001:DB8:0::A]:65535", "2001:db8::a", 65535),
        ("[::ffff:1.2.3.4]:5", "1.2.3.4", 5),
        ("1.2.3.4:051820", "1.2.3.4", 51820),
    ],
)
def test_an_endpoint_with_an_address(text: str, host: str, port: int) -> None:
    assert endpoint(text) == Endpoint(host, port, host)


@pytest.mark.parametrize("host", ["example.com", "a-b.c", "1.2.3", "10.0.0.256", "01.2.3.4", "a" * 64])
def test_an_endpoint_with_a_name_is_not_resolved(host: str) -> None:
    assert endpoint(f"{host}:7") == Endpoint(host, 7)


@pytest.mark.parametrize(
    "text",
    [
        *("10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:+5", "10.0.0.1:x", ":51820"),
        *("::1:51820", "[::1]51820", "[::1", "[::1]", "[::1]]:5", "[[::1]]:5", "::1]:5", "a[b]:5", "[a]b:5"),
        *("[fe80::1%eth0]:5", "-a:5", "a-:5", "a..b:5", "A.com:5", "a_b:5", "a\n:5", "a:5\n", "a:1:2", "é:5"),
        "a" * 254 + ":5",
        "a:" + "9" * 5000,
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ProtocolError):
        endpoint(text)


def test_a_name_is_lower_case_and_ends_where_it_ends() -> None:
    assert is_dns_name("vpn.example.com")
    assert not is_dns_name("vpn.example.com\n")
    assert not is_dns_name("")


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ('{"IP":"1.2.3.4","Port":5,"Zone":""}', UDPAddress("1.2.3.4", 5)),
        ('{"ip":"1.2.3.4","PORT":5,"zone":"eth0"}', UDPAddress("1.2.3.4", 5, "eth0")),
        ('{"IP":"2001:DB8::0A","Port":5}', UDPAddress("2001:db8::a", 5)),
        ('{"IP":"","Port":-5}', UDPAddress("", -5)),
        ('{"IP":null,"Port":null,"Zone":null}', UDPAddress()),
        ('{"Port":1,"port":2,"Other":[{}]}', UDPAddress("", 2)),
        ('{"Zone":"\\ud800"}', UDPAddress("", 0, "\ufffd")),
        ("{}", UDPAddress()),
        ("null", None),
    ],
)
def test_a_discovered_endpoint(entry: str, address: UDPAddress | None) -> None:
    assert discovered_endpoints(f'{{"k":{entry}}}') == {"k": address}


def test_of_a_doubled_key_the_last_counts() -> None:
    assert discovered_endpoints('{"k":{"Port":1,"Zone":"z"},"k":{"Port":2}}') == {"k": UDPAddress("", 2)}


def test_nothing_was_discovered() -> None:
    assert discovered_endpoints("null") == discovered_endpoints(" {} ") == {}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{broken", "[]", "1", '"x"', "true", "{} x", '{"k":null,}', "NaN", '{"k":{"Port":NaN}}'),
        *(
            '{"k":1}',
            '{"k":"x"}',
            '{"k":[]}',
            '{"k":{"IP":1}}',
            '{"k":{"IP":"x"}}',
            '{"k":{"IP":"fe80::1%e"}}',
        ),
        *('{"k":{"Port":1.0}}', '{"k":{"Port":1e3}}', '{"k":{"Port":"1"}}', '{"k":{"Port":true}}'),
        *('{"k":{"IP":"fe80::1%e"}}', '{"k":{"Zone":1}}', f'{{"k":{{"Port":{1 << 63}}}}}', "[" * 100000),
        '{"k":{"IP":"01.2.3.4"}}',
    ],
)
def test_one_bad_entry_spoils_all(text: str) -> None:
    with pytest.raises(ProtocolError):
        discovered_endpoints(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["IP", "Port", "Zone", "k", "ip"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_read_or_refused(value: object) -> None:
    try:
        found = discovered_endpoints(json.dumps(value))
    except ProtocolError:
        return
    for address in found.values():
        assert address is None or isinstance(address.port, int)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-22T05:26:32Z", 1795325192),
        ("2026-11-22T05:26:32", 1795325192),
        ("2026-11-22T06:26:32+01:00", 1795325192),
        ("1969-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00+14:00", 0),
        ("yesterday", 0),
        ("", 0),
        (None, 0),
    ],
)
def test_a_timestamp(text: str | None, seconds: int) -> None:
    assert unix_time(text) == seconds
