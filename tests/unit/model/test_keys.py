"""Keys: what is one, and what never shows."""

from __future__ import annotations

import json

import msgspec
import pytest

from kilo.errors import ProtocolError
from kilo.log import Logger
from kilo.model.keys import PresharedKey, canonical_key
from kilo.model.node import Peer

KEY = "CPHsDzA3Jg5Q/bO8jfktK4L4dJi9ikStdnl6+IfXTmY="


def test_a_key_is_32_bytes_of_base64() -> None:
    assert canonical_key(KEY) == KEY


@pytest.mark.parametrize("text", ["", "x", KEY[:-1], KEY[:-4], KEY + "AAAA", "*" + KEY[1:]])
def test_anything_else_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        canonical_key(text)
    assert len(text) < 5 or text not in str(caught.value)


def test_a_preshared_key_shows_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    key = PresharedKey(KEY)
    peer = Peer("p", KEY[::-1], preshared_key=key)
    Logger("test").info("peer", peer=peer, key=key, keys=[key])
    shown = repr(peer) + str(key) + f"{key}" + capfd.readouterr().out
    assert KEY not in shown
    assert "***" in shown
    with pytest.raises(TypeError):
        msgspec.json.encode(peer)
    with pytest.raises(TypeError):
        json.dumps(key)
