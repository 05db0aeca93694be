"""The private key's file, and that the key shows nowhere."""

from __future__ import annotations

import base64
import os
import pickle
import subprocess
from pathlib import Path

import msgspec
import pytest

from kilo.errors import PermanentError, TemporaryError
from kilo.log import Logger
from kilo.netctl import key as module
from kilo.netctl.key import PrivateKey

LOG = Logger("netctl", "none")
KEY = "QNogMDeQbow2A9r/paSJ9sUaEqKkrYP6sRheFZ0EY1Y="


def load_or_create(state_dir: str) -> PrivateKey:
    """On a host without an interface."""
    return module.load_or_create(state_dir, lambda: None, LOG)


def test_a_key_is_made_once_and_belongs_to_root_alone(tmp_path: Path) -> None:
    state = tmp_path / "lib" / "kilo"
    key = load_or_create(str(state))
    file = state / "key"
    assert file.stat().st_mode & 0o7777 == 0o600
    assert state.stat().st_mode & 0o7777 == 0o700
    assert base64.b64decode(file.read_text(), validate=True) == key.reveal()
    assert os.listdir(state) == ["key"], "nothing temporary is left"
    before = file.stat()
    assert load_or_create(str(state)) == key
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert load_or_create(str(tmp_path / "other")) != key


def test_the_public_key_is_the_one_that_wireguard_derives(tmp_path: Path) -> None:
    text = subprocess.run(["wg", "genkey"], check=True, capture_output=True, text=True).stdout
    public = subprocess.run(["wg", "pubkey"], check=True, capture_output=True, text=True, input=text).stdout
    (tmp_path / "key").write_text(text)
    assert load_or_create(str(tmp_path)).public() == public.strip()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "0 bytes long"),
        (KEY[:20], "long, not 32"),
        ("not a key at all", "not base64"),
        (KEY + KEY, "not base64"),
        ("\xff\xfe", "not base64"),
        (base64.b64encode(bytes(32)).decode(), "all zero"),
    ],
)
def test_a_damaged_key_is_an_error_that_names_the_file_and_is_kept(
    tmp_path: Path, content: str, why: str
) -> None:
    file = tmp_path / "key"
    file.write_text(content)
    with pytest.raises(PermanentError) as caught:
        load_or_create(str(tmp_path))
    assert str(file) in str(caught.value) and why in str(caught.value)
    assert not content or content not in str(caught.value)
    assert file.read_text() == content


def test_a_file_that_is_gone_is_written_again_with_the_interface_s_key(tmp_path: Path) -> None:
    held = PrivateKey(base64.b64decode(KEY))
    log = tmp_path / "log"
    with log.open("w") as out:
        logger = Logger("netctl", fd=out.fileno())
        assert module.load_or_create(str(tmp_path / "kilo"), lambda: held, logger) == held
    file = tmp_path / "kilo" / "key"
    assert file.read_text() == KEY and file.stat().st_mode & 0o7777 == 0o600
    assert os.listdir(file.parent) == ["key"]
    (line,) = log.read_text().splitlines()
    assert '"level":"warn"' in line and str(file) in line and KEY not in line
    file.write_text(base64.b64encode(bytes(range(1, 33))).decode())
    assert module.load_or_create(str(file.parent), lambda: held, LOG) != held, "a file that is there counts"


def test_an_interface_that_does_not_say_its_key_gets_no_new_one(tmp_path: Path) -> None:
    def silent() -> PrivateKey | None:
        raise TemporaryError("it does not answer")

    with pytest.raises(TemporaryError, match="does not answer"):
        module.load_or_create(str(tmp_path), silent, LOG)
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "lib").write_text("a file")
    with pytest.raises(PermanentError, match=str(tmp_path / "lib" / "key")):
        load_or_create(str(tmp_path / "lib"))


def test_a_key_prints_as_stars_and_cannot_be_sent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    key = PrivateKey(base64.b64decode(KEY))
    Logger("netctl").info(f"the key is {key}", key=key, keys=[key])
    assert f"{key!r}" == f"{key}" == "***"
    assert KEY not in capfd.readouterr().out
    for encode in (msgspec.msgpack.encode, msgspec.json.encode, pickle.dumps):
        with pytest.raises(TypeError):
            encode(key)


def test_keys_are_compared_as_the_device_keeps_them() -> None:
    raw = bytearray(base64.b64decode(KEY))
    raw[0] |= 7
    assert PrivateKey(bytes(raw)) == PrivateKey(base64.b64decode(KEY))
    raw[1] ^= 1
    assert PrivateKey(bytes(raw)) != PrivateKey(base64.b64decode(KEY))
