"""How the firewall reaches the kernel: all that reads or writes it, in one place.

``Access`` is what the agent uses. kilo.netctl.firewall.rehearsed has another, which reads and does not
write. The calls work on the network namespace of the calling thread. Given to the backends.
"""

from __future__ import annotations

from collections.abc import Iterable

from kilo.log import Logger
from kilo.netctl.firewall import choice, xtables
from kilo.netctl.firewall.edits import Edit
from kilo.netctl.firewall.layout import SET_REVISION, Table
from kilo.netctl.firewall.lock import XtablesLock
from kilo.netctl.firewall.nft_socket import NftSocket


class Access:
    """Each method is the function of that module which its text names."""

    def look(self) -> choice.Seen:
        """kilo.netctl.firewall.choice"""
        return choice.look()

    def nft(self) -> NftSocket:
        """kilo.netctl.firewall.nft_socket"""
        return NftSocket()

    def lock(self, log: Logger) -> XtablesLock:
        """kilo.netctl.firewall.lock"""
        return XtablesLock(log)

    def has_set_match(self) -> bool:
        """Whether a rule of a legacy table can look into a set: kilo.netctl.firewall.xtables"""
        return xtables.has_match(4, "set", SET_REVISION)

    def read_table(self, version: int, name: str) -> Table:
        """kilo.netctl.firewall.xtables"""
        return xtables.read_table(version, name)

    def commit(self, version: int, name: str, edits: Iterable[Edit]) -> None:
        """kilo.netctl.firewall.xtables"""
        xtables.commit(version, name, edits)


KERNEL = Access()
