"""``kg`` and its commands: finds out which is meant, reads the flags, and hands over."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from kilo import __version__
from kilo.cli.environment import misspelt
from kilo.cli.help import COMMANDS, general, of_command
from kilo.cli.usable import Look, refuse
from kilo.config import (
    FLAGS,
    Config,
    Flag,
    FlagError,
    UnknownFlagError,
    choice,
    first_word,
    given,
    load,
    meant,
    split,
    value_of,
)
from kilo.errors import PermanentError
from kilo.log import complain, own_outputs
from kilo.model.workers import CLEANERS, WORKERS

HELP = ("--help", "-help", "-h")
OUTPUT = Flag("o", choice("text", "json"), "text, json", "What to print (default: text).")
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
WITH_OUTPUT = ("status", "doctor")
KNOWN = {flag.name: flag for flag in (*FLAGS, OUTPUT)}


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point of the ``kg`` script; its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that has not all characters
    try:
        if text := misspelt(os.environ):
            complain(f"kg: {text}")
        status = dispatch(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # a reader that is gone is met here, and not when nobody can say so any more
        return status
    except FlagError as e:
        complain(f"kg: {e}")
        return 2
    except BrokenPipeError:
        give_up_output()
        return 141
    except OSError as e:
        if e.errno not in CANNOT_WRITE or e.filename is not None:
            raise
        give_up_output()
        complain(f"kg: standard output: {e.strerror}")
        return os.EX_IOERR
    except KeyboardInterrupt:
        return 130


def give_up_output() -> None:
    """What is still to be written would fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def dispatch(arguments: list[str]) -> int:
    """Run the command that ``arguments`` name. Raises FlagError."""
    place = first_word(arguments, KNOWN | plan_flags() if "plan" in arguments else KNOWN)
    first = arguments[place : place + 1]
    if first == ["plan"]:
        return run("kilo.cli.plan", arguments[:place] + arguments[place + 1 :])
    if first == ["help"] or any(a in HELP for a in arguments):
        return tell(arguments[place + (first == ["help"]) :])
    texts, words = parted(arguments)
    if words and words[0] not in COMMANDS:
        raise unknown(words[0])
    command = words.pop(0) if words else ""
    output = texts.pop("o", [])
    if output and command not in WITH_OUTPUT:
        raise FlagError(
            f"unknown flag -o; {', '.join(f'kg {name}' for name in WITH_OUTPUT)} and kg plan have it"
        )
    config = load(texts)
    if config.version or (command == "version" and not words):
        print(__version__)
        return 0
    if command == "cleanup":
        return clean_up(config, words)
    if words and command not in ("restart", "loglevel", "tail"):
        raise FlagError(f"{words[0]!r} is not expected here; kg {command} --help says what is")
    if command in WITH_OUTPUT:
        return run(f"kilo.cli.{command}", config, value_of(OUTPUT, output or ["text"]), given(texts))
    if command in WORKERS:
        return run_alone(command, config)
    if command:
        return run("kilo.cli.operate", command, config, words)
    return run_all(config)


def parted(arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The flags' texts, and the words. Raises FlagError."""
    try:
        return split(arguments, KNOWN)
    except UnknownFlagError as e:
        if e.name not in plan_flags():
            raise
        raise FlagError(f"unknown flag --{e.name}; kg plan has it") from e


def plan_flags() -> dict[str, Flag]:
    """Those that only ``kg plan`` has."""
    own: tuple[Flag, ...] = import_module("kilo.cli.planinput").OWN_FLAGS  # with all that it reads files by
    return {flag.name: flag for flag in own}


def unknown(command: str) -> FlagError:
    near = meant(command, COMMANDS, "kg ")
    return FlagError(f"unknown command {command!r}{near}; commands: {', '.join(COMMANDS)}")


def tell(words: list[str]) -> int:
    """Print the help of the command that ``words`` begin with, or the general one. Raises FlagError."""
    named = words[0] if words and not words[0].startswith("-") else ""
    if named and named not in COMMANDS:
        raise unknown(named)
    if named == "plan":
        return run("kilo.cli.plan", ["--help"])
    own = (OUTPUT,) if named in WITH_OUTPUT else ()
    print(of_command(named, own) if named else general())
    return 0


def run(module: str, *arguments: object) -> int:
    """Import ``module`` and call its ``main``."""
    entry: Callable[..., int] = import_module(module).main
    return entry(*arguments)


def run_all(config: Config) -> int:
    """Run the agent. The configuration of the API is looked at while the parent's code loads."""
    hold_signals()
    look = Look(config)
    parent = import_module("kilo.supervisor.parent")
    return 2 if look.refused() else int(parent.main(config))


def run_alone(name: str, config: Config) -> int:
    """Run one worker in this process."""
    hold_signals()
    if name == "watcher":
        try:
            refuse(config)
        except PermanentError as e:
            complain(f"kg watcher: {e}")
            return 2
    own_outputs()
    child = import_module("kilo.supervisor.child")
    return int(child.run_alone(name, config))


def clean_up(config: Config, words: list[str]) -> int:
    """Raises FlagError if ``words`` are not workers that have something to clean up."""
    for word in words:
        if word not in CLEANERS:
            raise FlagError(f"kg cleanup: {word!r} is not {' or '.join(CLEANERS)}; the others leave nothing")
    hold_signals()
    own_outputs()
    return run("kilo.cli.cleanup", config, words)


def hold_signals() -> None:
    """Keep what tells the agent to end until it is ready to do so properly; the kernel would throw it
    away where the agent is PID 1."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


if __name__ == "__main__":
    sys.exit(main())
