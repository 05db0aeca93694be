"""The flags of the agent that runs here: who looks at it from a shell has none of them at hand."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from kilo.config import FLAGS, Config
from kilo.errors import KiloError, PermanentError, TemporaryError
from kilo.supervisor.control import Request, ask


def as_it_runs(config: Config, given: Collection[str]) -> tuple[Config, str]:
    """The Config of the agent that runs in its run dir, but for the fields that were ``given``; and the flags
    that came from there, for a person. Where no parent answers, as with a container for each worker, the
    Config stays what it is."""
    try:
        reply = ask(config.run_dir, Request("flags"))
        if reply.error:
            raise TemporaryError(reply.error)
        theirs = {name: value for name, value in reply.flags.items() if name not in given}
        merged = msgspec.convert({**msgspec.structs.asdict(config), **theirs}, Config)
    except PermanentError as e:
        return config, f"those of this command: {e}"
    except (KiloError, msgspec.ValidationError):
        return config, "those of this command: no parent runs here that tells its own"
    names = ", ".join(flag.name for flag in FLAGS if flag.field in theirs) or "none that is not the default"
    return merged, f"those of the agent that runs here: {names}"
