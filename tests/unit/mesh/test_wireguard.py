from __future__ import annotations

from kilo.mesh.wireguard import as_peer, conf, peer_conf
from kilo.model.keys import PresharedKey
from tests.unit.mesh.states import at, cluster, key, node, peer, topology

SECRET = key("secret")
MESH = topology(
    cluster(
        node("n1", "x", persistent_keepalive=10),
        node("n2", "y", endpoint=at("2001:db8::2"), allowed_location_ips=("192.168.7.5/24",)),
        peer("p1", "10.5.0.1/32", persistent_keepalive=25, preshared_key=PresharedKey(SECRET)),
        peer("p2", "10.5.0.2/32", endpoint=at("198.51.100.2", 7)),
    )
)


def test_the_local_configuration() -> None:
    assert conf(MESH, 51820, key("private")) == "\n".join(
        [
            "[Interface]",
            f"PrivateKey = {key('private')}",
            "ListenPort = 51820",
            "",
            "[Peer]",
            "AllowedIPs = 10.2.2.0/24, 10.0.0.2/32, 10.4.0.2/32, 192.168.7.5/24",
            "Endpoint = [2001:db8::2]:51820",
            "PersistentKeepalive = 10",
            f"PublicKey = {key('n2')}",
            "",
            "[Peer]",
            "AllowedIPs = 10.5.0.1/32",
            "PersistentKeepalive = 10",
            f"PresharedKey = {SECRET}",
            f"PublicKey = {key('p1')}",
            "",
            "[Peer]",
            "AllowedIPs = 10.5.0.2/32",
            "Endpoint = 198.51.100.2:7",
            "PersistentKeepalive = 10",
            f"PublicKey = {key('p2')}",
            "",
        ]
    )


def test_without_the_key_there_is_no_line_for_it() -> None:
    assert conf(MESH, 1).startswith("[Interface]\nListenPort = 1\n\n[Peer]\n")


def test_the_local_segment_as_a_peer() -> None:
    assert as_peer(MESH) == (
        "[Peer]\nAllowedIPs = 10.2.1.0/24, 10.0.0.1/32, 10.4.0.1/32\nEndpoint = 203.0.113.1:51820\n"
        f"PersistentKeepalive = 0\nPublicKey = {key('n1')}\n"
    )


def test_a_peer_shares_its_secret_with_segments_and_not_with_other_peers() -> None:
    sections = peer_conf(MESH, "p1").split("\n\n")
    assert [section.count(f"PresharedKey = {SECRET}\n") for section in sections] == [1, 1, 0]
    assert [section.count("PersistentKeepalive = 25") for section in sections] == [1, 1, 1]
    assert f"PublicKey = {key('p1')}" not in peer_conf(MESH, "p1")
    assert "PresharedKey" not in peer_conf(MESH, "p2")


def test_a_keepalive_below_zero_is_printed_as_the_go_agent_prints_it() -> None:
    mesh = topology(cluster(node("n1", "x", persistent_keepalive=-1), node("n2", "y")))
    assert "PersistentKeepalive = 18446744073709551615\n" in conf(mesh, 1)
