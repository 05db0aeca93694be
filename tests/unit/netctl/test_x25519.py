"""X25519 against the vectors of RFC 7748, section 5.2."""

from __future__ import annotations

import pytest

from kilo.netctl.x25519 import multiply, public_key

BASE = "0900000000000000000000000000000000000000000000000000000000000000"


@pytest.mark.parametrize(
    ("scalar", "point", "product"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_products_of_the_rfc(scalar: str, point: str, product: str) -> None:
    assert multiply(bytes.fromhex(scalar), bytes.fromhex(point)).hex() == product


def test_the_first_iteration_of_the_rfc() -> None:
    base = bytes.fromhex(BASE)
    product = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert multiply(base, base).hex() == product


def test_two_parties_agree() -> None:
    a, b = bytes(range(32)), bytes(range(100, 132))
    assert multiply(a, public_key(b)) == multiply(b, public_key(a))
