"""The filter as a program: run here for both architectures, and its numbers beside the kernel's headers."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest

from kilo.sandbox.seccomp import ARCHITECTURES, DENIED, PROCESSES, Architecture, program

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026
BOTH = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
HEADERS = {"x86_64": "*/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}
NEWEST = {"open_tree_attr"}
"""Younger than the headers may be."""


def run(
    architecture: Architecture,
    number: int,
    argument: int = 0,
    audit: int | None = None,
    processes: bool = True,
) -> int:
    """What the program answers to a call: the steps of classic BPF that it has."""
    data = struct.pack("=IIQQ", number, architecture.audit if audit is None else audit, 0, argument)
    steps = list(struct.iter_unpack("HBBI", program(architecture, processes)))
    at = register = 0
    while True:
        code, if_so, if_not, value = steps[at]
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (register,) = struct.unpack_from("=I", data, value)
        else:
            so = {0x15: register == value, 0x35: register >= value, 0x45: bool(register & value)}[code]
            at += if_so if so else if_not


@BOTH
def test_each_of_these_is_refused_and_all_others_are_not(architecture: Architecture) -> None:
    denied = {number for numbers in DENIED.values() if (number := numbers[architecture.column]) >= 0}
    assert {n for n in range(600) if run(architecture, n) == EPERM} == denied
    assert {n for n in range(600) if run(architecture, n) == ENOSYS} == {435}


@BOTH
def test_processes_and_threads_but_no_namespaces(architecture: Architecture) -> None:
    for flags in (17, 0x3D0F00, 0x4111):  # fork, a thread, vfork
        assert run(architecture, architecture.clone, flags) == ALLOW
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert run(architecture, architecture.clone, 1 << bit | 17) == EPERM


@BOTH
def test_without_processes_nothing_else_changes(architecture: Architecture) -> None:
    denied = {
        number for numbers in (DENIED | PROCESSES).values() if (number := numbers[architecture.column]) >= 0
    }
    found = {n: run(architecture, n, processes=False) for n in range(600)}
    assert {n for n, answer in found.items() if answer == EPERM} == denied | {architecture.clone}
    assert {n for n, answer in found.items() if answer == ENOSYS} == {435}


@BOTH
def test_without_processes_clone_makes_threads_alone(architecture: Architecture) -> None:
    def clone(flags: int) -> int:
        return run(architecture, architecture.clone, flags, processes=False)

    for flags in (0x3D0F00, 0x7D0F00, 0x3D0F00 | 0xABCD << 32):  # glibc's, musl's; the kernel cuts the rest
        assert clone(flags) == ALLOW
    for flags in (17, 0, 0x4111, 0x1200011, 1 << 32 + 16 | 17):  # fork, vfork, a bit that the kernel drops
        assert clone(flags) == EPERM
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert clone(1 << bit | 0x3D0F00) == EPERM


@BOTH
def test_other_architectures(architecture: Architecture) -> None:
    assert run(architecture, 20, audit=0x40000003) == KILL
    assert run(architecture, 0x40000000 | 39) == ENOSYS


@BOTH
def test_it_fits_into_what_jumps_can_reach(architecture: Architecture) -> None:
    assert len(program(architecture, processes=False)) // 8 < 255


@pytest.mark.parametrize("machine", sorted({os.uname().machine, "aarch64"}))
def test_the_numbers_are_those_of_the_headers(machine: str) -> None:
    """Of this machine, and the generic ones, which are arm64's and everywhere."""
    found = {}
    for header in Path("/usr/include").glob(HEADERS[machine]):
        for name, number in re.findall(r"__NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()):
            found[name] = int(number)
    known = ARCHITECTURES[machine]
    tables = DENIED | PROCESSES
    names = tables.keys() - NEWEST
    assert {name: tables[name][known.column] for name in names} == {
        name: found.get(name, -1) for name in names
    }
    assert (found["clone"], found["seccomp"], found["clone3"]) == (known.clone, known.seccomp, 435)
