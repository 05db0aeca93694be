"""``kg`` and its commands: finds out which is meant, reads the flags, and hands over."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from kilo import __version__
from kilo.cli.environment import misspelt
from kilo.cli.help import COMMANDS, general, of_command
from kilo.config import FLAGS, Config, Flag, FlagError, choice, given, load, meant, split, value_of
from kilo.log import complain, own_outputs
from kilo.model.workers import CLEANERS, WORKERS

HELP = ("--help", "-help", "-h")
OUTPUT = Flag("o", choice("text", "json"), "text, json", "What to print (default: text).")
WITH_OUTPUT = ("status", "doctor")


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point of the ``kg`` script; its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        return 130


def dispatch(arguments: list[str]) -> int:
    """Run the command that ``arguments`` name. Raises FlagError."""
    if arguments[:1] == ["plan"]:
        return run("kilo.cli.plan", arguments[1:])
    if arguments[:1] == ["help"] or any(a in HELP for a in arguments):
        return tell(arguments)
    texts, words = split(arguments, {flag.name: flag for flag in (*FLAGS, OUTPUT)})
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
    if command == "plan":
        raise FlagError("kg plan: the command comes before its flags")
    if command and command not in COMMANDS:
        near = meant(command, COMMANDS, "kg ")
        raise FlagError(f"unknown command {command!r}{near}; commands: {', '.join(COMMANDS)}")
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
    hold_signals()
    return run("kilo.supervisor.parent", config)


def tell(arguments: list[str]) -> int:
    """Print the help of the command that ``arguments`` name, or the general one."""
    named = next((a for a in arguments if a in COMMANDS), "")
    if named == "plan":
        return run("kilo.cli.plan", ["--help"])
    own = (OUTPUT,) if named in WITH_OUTPUT else ()
    print(of_command(named, own) if named else general())
    return 0


def run(module: str, *arguments: object) -> int:
    """Import ``module`` and call its ``main``."""
    entry: Callable[..., int] = import_module(module).main
    return entry(*arguments)


def run_alone(name: str, config: Config) -> int:
    """Run one worker in this process."""
    hold_signals()
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
