"""``--help`` of each command."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kilo.cli.help import COMMANDS
from kilo.config import FLAGS


def told(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "kilo", *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_does_its_statuses_and_then_the_flags(name: str) -> None:
    text = told(name, "--help")
    assert text.startswith(f"Usage: kg {name}")
    head, flags = text.split("Flags of every command")
    assert head.index("Usage:") < head.index("Exit status:")
    assert all(f"\n  {number}  " in head for number in COMMANDS[name].statuses)
    assert "0" in head.split("Exit status:")[1]
    assert all(f"  --{flag.name}  " in flags for flag in FLAGS)
    assert all(len(line) <= 100 for line in head.partition("Options:")[0].splitlines())


def test_its_own_options_come_before_the_general_flags() -> None:
    for name, option in (("status", "-o"), ("plan", "--nodes"), ("plan", "-o")):
        own = told(name, "--help").partition("Options:")[2].partition("Exit status:")[0]
        assert f"\n  {option}  " in own
    assert "text, json" in told("status", "--help")
    assert "Options:" not in told("restart", "--help")


@pytest.mark.parametrize("name", ["status", "plan", "netctl"])
def test_help_is_asked_for_in_several_ways(name: str) -> None:
    wanted = told(name, "--help")
    assert [told(*words) for words in ([name, "-h"], ["help", name], ["--help", name])] == [wanted] * 3


def test_the_general_help_names_every_command() -> None:
    text = told("--help")
    assert text == told("help")
    assert all(f"\n  {name:<9} {command.summary}\n" in text for name, command in COMMANDS.items())
