"""The command line as a whole: which command is meant, and what is wrong with it, in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kilo.cli.help import COMMANDS
from tests.unit.cli.test_plan import NODES, NOW, write


def kg(*words: str | bytes) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kilo", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def refused(*words: str | bytes) -> str:
    """The one line in which a command line is refused."""
    done = kg(*words)
    assert (done.returncode, done.stdout) == (2, ""), done
    (line,) = done.stderr.splitlines()
    return line


def test_flags_may_come_before_the_command(tmp_path: Path) -> None:
    files = write(tmp_path, nodes=NODES)
    more = ["--hostname", "a", "--at", str(NOW), "--local"]
    wanted = kg("plan", *files, *more)
    assert wanted.returncode == 0 and json.loads(wanted.stdout)["topology"]
    for words in (
        ("--hostname", "a", "plan", *files, "--at", str(NOW)),
        (*more, "plan", *files),
        (*more, *files, "plan"),
        (*more, *files, "-o", "json", "plan"),
    ):
        assert kg(*words).stdout == wanted.stdout, words


def test_a_flag_s_value_is_no_command(tmp_path: Path) -> None:
    done = kg("--hostname", "plan", "--run-dir", str(tmp_path / "status"), "status", "-o", "json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["node"] == "plan"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_has_the_same_errors_wherever_its_flags_are(command: str) -> None:
    after = refused(command, "--mtu", "x")
    assert "--mtu: 'x' is not allowed; allowed: auto, or 576 to 65535" in after
    assert refused("--mtu", "x", command) == after
    assert "unknown flag --hostnam (is --hostname meant?)" in refused("--hostnam", "x", command)
    assert "unknown flag --hostnam (is --hostname meant?)" in refused(command, "--hostnam", "x")


@pytest.mark.parametrize("words", [("status", "--nodes", "f"), ("--nodes", "f", "status"), ("--nodes", "f")])
def test_a_flag_of_another_command_is_named_with_it(words: tuple[str, ...]) -> None:
    assert "--nodes" in refused(*words) and "kg plan has it" in refused(*words)


def test_o_where_nobody_takes_it() -> None:
    assert "unknown flag -o" in refused("-o", "json", "restart", "mesh")
    assert "unknown flag -o" in refused("-o", "json")


def test_what_is_no_command() -> None:
    assert refused("--mtu=1400", "staus") == refused("staus")
    assert refused("staus").startswith("kg: unknown command 'staus' (is kg status meant?)")
    assert "'extra'" in refused("--mtu=1400", "status", "extra")


def test_two_dashes_end_the_flags(tmp_path: Path) -> None:
    assert kg(f"--run-dir={tmp_path}", "--", "status").returncode == 3


def test_help_of_the_command_that_is_meant() -> None:
    wanted = kg("status", "--help").stdout
    for words in (
        ("--hostname", "plan", "status", "-h"),
        ("--mtu=1400", "help", "status"),
        ("--help", "status"),
    ):
        assert kg(*words).stdout == wanted, words
    assert kg("--nodes", "f", "plan", "--help").stdout == kg("help", "plan").stdout
    assert "unknown command 'staus' (is kg status meant?)" in refused("staus", "--help")
    assert refused("help", "staus") == refused("staus", "--help")


@pytest.mark.parametrize(
    "words", [("help",), ("version",), ("plan", "--help"), ("status",), ("doctor", "-o=json")]
)
def test_output_that_cannot_be_written(tmp_path: Path, words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kilo", *words, f"--run-dir={tmp_path}/run"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=90,
            check=False,
        )
    assert done.returncode == os.EX_IOERR
    assert done.stderr == "kg: standard output: No space left on device\n"


def without(descriptor: str, *words: str) -> subprocess.CompletedProcess[str]:
    """With a standard descriptor closed, as by ``>&-``."""
    script = f'exec "$0" -m kilo "$@" {descriptor}'
    command = ["sh", "-c", script, sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def test_standard_input_that_is_closed() -> None:
    done = without("<&-", "plan", "--nodes", "-")
    assert (done.returncode, done.stderr) == (2, "kg plan: --nodes -: standard input is closed\n")


def test_standard_output_that_is_closed(tmp_path: Path) -> None:
    done = without(">&-", "status", f"--run-dir={tmp_path}/run")
    assert (done.returncode, done.stderr) == (3, "")


def test_a_character_that_the_terminal_has_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kilo", "status", f"--run-dir={tmp_path}/é"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=environment)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.endswith("/\\xe9\n")


@pytest.mark.parametrize("flag", ["run-dir", "kubeconfig", "cni-path", "interface"])
def test_a_value_that_is_no_text(flag: str) -> None:
    assert f"--{flag}: '/\\udcff' is not allowed" in refused("doctor", b"--%s=/\xff" % flag.encode())


def test_an_empty_word_is_no_command() -> None:
    """As of a script's variable that is not set: the agent is not to be started by that."""
    for words in (("",), ("--mtu=1400", ""), ("", "status")):
        assert refused(*words, "--kubeconfig=/nowhere").startswith("kg: unknown command ''")
