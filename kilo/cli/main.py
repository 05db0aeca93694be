"""``kg`` and its commands: finds out which is meant, reads the flags, and hands over."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from kilo import __version__
from kilo.config import FLAGS, Config, FlagError, load, split

WORKERS = ("watcher", "mesh", "netctl", "cni", "health")
COMMANDS = {
    "watcher": "run only the watcher: speaks to the Kubernetes API",
    "mesh": "run only the planner",
    "netctl": "run only what changes the kernel",
    "cni": "run only what keeps the CNI configuration",
    "health": "run only the health and metrics server",
    "plan": "print what would be planned, from files; see kg plan --help",
    "status": "print how the agent on this host is doing",
    "restart": "restart one worker, or all: kg restart WORKER",
    "tail": "print what passes on the bus: kg tail [WORKER]",
    "version": "print the version",
}


def usage() -> str:
    """The text of ``kg --help``."""
    lines = ["Usage: kg [COMMAND] [FLAGS]", "", "kg without a command runs the agent. Commands:"]
    lines += [f"  {name:<9} {meaning}" for name, meaning in COMMANDS.items()]
    lines += ["", "Flags of every command; each also from the environment, as KILO_ and its name:"]
    for flag in FLAGS:
        default = getattr(Config(), flag.field)
        lines.append(f"  --{flag.name}  {flag.meaning} Allowed: {flag.allowed}. Default: {shown(default)}.")
    return "\n".join(lines)


def shown(value: object) -> str:
    """A flag's default as a person would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}s"
    if value in ("", ()):
        return "none"
    if isinstance(value, tuple):
        return f"{value[0]}:{value[1]}"
    return str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point of the ``kg`` script; its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return dispatch(arguments)
    except FlagError as e:
        print(f"kg: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        return 130


def dispatch(arguments: list[str]) -> int:
    """Run the command that ``arguments`` name. Raises FlagError."""
    command = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    if command == "plan":
        return run("kilo.cli.plan", arguments[1:])
    if any(a in ("--help", "-help", "-h") for a in arguments) or arguments[:1] == ["help"]:
        print(usage())
        return 0
    texts, words = split(arguments)
    command = words.pop(0) if words else ""
    config = load(texts)
    if config.version or command == "version":
        print(__version__)
        return 0
    if command == "plan":
        raise FlagError("kg plan: the command comes before its flags")
    if command and command not in COMMANDS:
        raise FlagError(f"unknown command {command!r}; commands: {', '.join(COMMANDS)}")
    if words and command not in ("restart", "tail"):
        raise FlagError(f"{words[0]!r} is not expected here; kg --help says what is")
    if command in WORKERS:
        return run_alone(command, config)
    if command:
        return run("kilo.cli.operate", command, config, words)
    return run("kilo.supervisor.parent", config)


def run(module: str, *arguments: object) -> int:
    """Import ``module`` and call its ``main``."""
    entry: Callable[..., int] = import_module(module).main
    return entry(*arguments)


def run_alone(name: str, config: Config) -> int:
    """Run one worker in this process."""
    child = import_module("kilo.supervisor.child")
    return int(child.run_worker(name, config))


if __name__ == "__main__":
    sys.exit(main())
