"""The texts of ``--help``: what a command does, its own options, its exit statuses, then the flags that
every command has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from textwrap import wrap

from kilo.config import FLAGS, Config, Flag

_WORKER_ENDS = (
    "SIGTERM and SIGINT end it with its clean-up, as --clean-up says; a second one does not wait. "
    "SIGHUP ends it without, as for a restart."
)
_WORKER = {
    0: "it was told to end",
    1: "it died of an error, another one runs in --run-dir, or a second signal came",
    2: "a flag or the configuration is not usable; standard error says which",
}
_OPERATOR = {2: "a flag or an argument is not allowed"}
_ASKS_PARENT = {3: "no agent answers in --run-dir, or this user may not ask it"}


@dataclass(frozen=True)
class Command:
    """``summary`` is its line in ``kg --help``; ``usage`` follows ``kg`` and its name."""

    summary: str
    text: str
    usage: str = "[FLAGS]"
    statuses: Mapping[int, str] = field(default_factory=dict)


def _worker(summary: str, text: str) -> Command:
    alone = "This runs it alone, in the foreground, with the same flags as the agent."
    return Command(summary, f"{text} {alone} {_WORKER_ENDS}", statuses=_WORKER)


AGENT = Command(
    "run the agent",
    "Runs the agent: a parent that starts the five workers, watches them and starts them again. SIGTERM "
    "and SIGINT end it with its clean-up, within 20 s; a second one does not wait. SIGHUP ends it "
    "without, as for a restart.",
    "[COMMAND] [FLAGS]",
    {
        0: "it was told to end, and has",
        1: "it ended without having cleaned up all that --clean-up asks for; the log says what is left",
        2: "a flag or the configuration is not usable; standard error says which",
    },
)
COMMANDS = {
    "watcher": _worker(
        "run only the watcher: speaks to the Kubernetes API",
        "The watcher lists and watches nodes and Peers, resolves the names of their endpoints, and keeps "
        "the annotations of its own node.",
    ),
    "mesh": _worker(
        "run only the planner",
        "The planner turns the state of the cluster and of this host into a plan: peers, routes, rules, "
        "firewall. It does nothing itself.",
    ),
    "netctl": _worker(
        "run only what changes the kernel",
        "netctl makes the kernel match the plan: the WireGuard interface and its peers, addresses, "
        "routes, rules, firewall. It alone has the private key.",
    ),
    "cni": _worker(
        "run only what keeps the CNI configuration",
        "cni keeps this node's pod CIDR in the file that --cni-path names.",
    ),
    "health": _worker(
        "run only the health and metrics server",
        "health serves /health, /ready, /metrics, /graph and the topology page on --listen.",
    ),
    "plan": Command(
        "print what would be planned, or changed",
        "Prints what the agent with these flags would plan on the node that --hostname names, from\n"
        "  kubectl get nodes -o json > nodes.json\n"
        "  kubectl get peers.kilo.squat.ai -o json > peers.json\n"
        "with no cluster and no privilege. Whoever takes no part is named on standard error, with the "
        "field and the reason.\n"
        "With --diff it prints what the agent would change in the kernel of this host, a line for each "
        "object: + is added, ~ changed, - removed. It changes nothing. The plan is then the one that the "
        "agent here follows, or, with --nodes, what those files and this host make. Run it as root where the "
        "agent runs: it has that one's flags, but for those that it is given.",
        "[--diff] [--nodes FILE] [--peers FILE] [--hostname NODE] [-o FORMAT] [FLAGS]",
        {
            0: "the plan was printed; with --diff, nothing would be changed",
            1: "nothing can be planned for that node; with --diff, something would be changed",
            2: "a flag is not allowed, or the input cannot be used",
            3: "with --diff: no agent publishes a plan in --run-dir",
            4: "with --diff: it cannot be told, for want of a right or of an answer",
        },
    ),
    "status": Command(
        "print how the agent on this host is doing",
        "Prints whether this node is healthy, and if not, why and since when; each worker; the plan, and "
        "whether it is applied; WireGuard's peers; and who takes no part in the mesh, with the field and "
        "the reason. It listens to the bus for up to 1.5 s.",
        "[-o FORMAT] [FLAGS]",
        {
            0: "healthy",
            1: "degraded: at least one reason is given",
            **_OPERATOR,
            3: "no agent runs in --run-dir, or this user may not look",
        },
    ),
    "doctor": Command(
        "look for what usually goes wrong",
        "Looks at this host and its agent, and says of each thing that usually goes wrong whether it is "
        "well, and if not, how to mend it: WireGuard and IPIP in the kernel, forwarding, rp_filter, the UDP "
        "port, the MTU of the paths, the CNI directory, --subnet, a Go agent beside this one, the API and "
        "what the agent may do there, the clock, silent peers. Run it where the agent runs: it has that "
        "one's flags, but for those that it is given. Where none runs, that is said first, and all else is "
        "judged by the flags that it is given, and defaults. It changes nothing.",
        "[-o FORMAT] [FLAGS]",
        {
            0: "nothing is wrong; there may be warnings",
            1: "something is, or no agent runs here",
            **_OPERATOR,
        },
    ),
    "restart": Command(
        "restart one worker, or all",
        "Ends a worker without clean-up, starts it again, and waits until it is ready, for up to 60 s. "
        "Traffic does not notice. WORKER is watcher, mesh, netctl, cni, health or all. Where there is no "
        "parent, the worker is asked to end, from its own container or its host, and whoever keeps it, such "
        "as the kubelet, has to start it again.",
        "WORKER [FLAGS]",
        {0: "ready again", 1: "not ready after 60 s, or the agent is ending", **_OPERATOR, **_ASKS_PARENT},
    ),
    "loglevel": Command(
        "change how much is logged, now",
        "Changes the level of one worker's log, or of all workers' and the parent's, until the agent ends; "
        "a worker that is started again keeps it. LEVEL is all, debug, info, warn, error or none. Where "
        "there is no parent, give --log-level.",
        "LEVEL [WORKER] [FLAGS]",
        {0: "it is changed", 1: "the agent refused", **_OPERATOR, **_ASKS_PARENT},
    ),
    "tail": Command(
        "print what passes on the bus",
        "Prints each message of the bus, or of one worker's topics, as a line of JSON, until interrupted: "
        "first what holds now, then what changes. Secrets are ***. Who is not heard within 2 s is named on "
        "standard error, and waited for.",
        "[WORKER] [FLAGS]",
        {0: "it was interrupted", **_OPERATOR, 3: "it was interrupted, and had heard nothing"},
    ),
    "cleanup": Command(
        "take away what the agent left on this host",
        "Removes this node's annotations (watcher), and routes, rules, sets and the WireGuard interface "
        "(netctl), by default both. For when the agent is gone for good and was ended without its "
        "clean-up, whatever --clean-up says; refused while one runs. The key in --state-dir and the CNI "
        "configuration stay.",
        "[watcher] [netctl] [FLAGS]",
        {0: "nothing is left", 1: "something is left; the log says what", **_OPERATOR},
    ),
    "version": Command(
        "print the version", "Prints the version.", statuses={0: "the version was printed", **_OPERATOR}
    ),
}


def general() -> str:
    """The text of ``kg --help``."""
    lines = ["kg without a command runs the agent. Commands (kg COMMAND --help says more):"]
    lines += [f"  {name:<9} {command.summary}" for name, command in COMMANDS.items()]
    return _page("kg", AGENT, (), ["", *lines])


def of_command(name: str, own: Iterable[Flag] = ()) -> str:
    """The text of ``kg NAME --help``; ``own`` are the flags that only this command has."""
    return _page(f"kg {name}", COMMANDS[name], own, [])


def _page(program: str, command: Command, own: Iterable[Flag], more: list[str]) -> str:
    lines = [f"Usage: {program} {command.usage}", "", *_wrapped(command.text), *more]
    if own:
        lines += ["", "Options:", *(f"  {flag.dashed}  {_meaning(flag)}" for flag in own)]
    lines += ["", "Exit status:", *(f"  {number}  {what}" for number, what in command.statuses.items())]
    lines += ["", "Flags of every command; each also from the environment, as KILO_ and its name:"]
    defaults = Config()
    for flag in FLAGS:
        default = shown(getattr(defaults, flag.field))
        lines.append(f"  {flag.dashed}  {_meaning(flag)} Default: {default}.")
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    """Lines that a terminal shows whole; one that begins with a space stays as it is."""
    return [
        line
        for given in text.split("\n")
        for line in ([given] if given.startswith(" ") else wrap(given, 100))
    ]


def _meaning(flag: Flag) -> str:
    return f"{flag.meaning} Allowed: {flag.allowed}."


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
