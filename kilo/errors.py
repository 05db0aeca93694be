"""The error tree: what went wrong decides what to do about it, so that is what the types say.

Library errors are translated at the adapter that calls the library, with ``raise … from``.
"""


class KiloError(Exception):
    """Root of every error that this program raises on purpose."""


class TemporaryError(KiloError):
    """Trying again later may work: the API is away, the kernel is busy."""


class TakenError(TemporaryError):
    """Another agent does this worker's work on this host: it is not ours to do, nor to clean up after."""


class PermanentError(KiloError):
    """Trying again will not help until a person changes something. Ends a worker with exit status 2."""


class ProtocolError(KiloError):
    """Input from outside that is not what it must be. Costs the one object that carried it."""
