from __future__ import annotations

from kilo.model.topology import PeerView, TopologyHead, keepers, name_of
from tests.unit.health.samples import key, segment

OF_NODE, OF_PEER = segment("b", 2), PeerView("laptop", key(9))


def test_public_key_that_several_claim_is_of_the_one_that_keeps_it() -> None:
    for lost in (PeerView("a", key(9), key_lost=True), PeerView("z", key(9), key_lost=True)):
        for items in ([OF_PEER, lost], [lost, OF_PEER]):
            assert keepers(items) == {key(9): OF_PEER}
    assert keepers([OF_NODE, PeerView("copy", key(2), key_lost=True)]) == {key(2): OF_NODE}


def test_head_has_no_public_key() -> None:
    assert keepers([TopologyHead("a", "location:a", True, "10.4.0.0/16")]) == {}


def test_name_of_a_segment_is_its_leaders() -> None:
    assert (name_of(segment("b", 2, "b2")), name_of(OF_PEER)) == ("b", "laptop")
