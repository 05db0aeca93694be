"""The tables that the kernel has, as read last and changed since.

A table that this network namespace does not use is not read, since reading would make it, nor
written unless something is wanted of it. Called by kilo.netctl.firewall.legacy.
"""

from __future__ import annotations

from kilo.log import Logger
from kilo.netctl.firewall import xtables
from kilo.netctl.firewall.access import KERNEL, Access
from kilo.netctl.firewall.edits import edits
from kilo.netctl.firewall.layout import Table
from kilo.netctl.firewall.rules import TABLES, Layout

TableId = tuple[int, str]
"""IP version and the table's name."""


class Tables:
    """Every table of ``rules.TABLES``, of the IP versions that were loaded."""

    def __init__(self, log: Logger, access: Access = KERNEL) -> None:
        self.lock = access.lock(log)
        self._access = access
        self._log = log
        self._tables: dict[TableId, Table] = {}
        self._absent: set[TableId] = set()

    def load(self, versions: tuple[int, ...]) -> None:
        """Read every table that is in use. Raises TemporaryError."""
        for version in versions:
            for name in TABLES:
                in_use = xtables.is_in_use(version, name)
                self._tables[version, name] = self._read((version, name)) if in_use else Table()

    def differs(self, table_id: TableId, layout: Layout, matters: bool) -> bool:
        """Whether there is something to do about a table.

        ``matters``: its absence is an error.
        """
        if table_id in self._absent and not matters:
            return False
        return bool(edits(self._tables[table_id], layout))

    def put_right(self, table_id: TableId, layout: Layout, matters: bool) -> None:
        """Have a table hold ``layout`` and nothing else of ours, in one commit.

        Raises TemporaryError if the kernel refuses or somebody else holds the lock for too long, and
        TableMissing if the kernel lacks a table that ``matters``.
        """
        with self.lock.held():
            try:
                table = self._access.read_table(*table_id)
            except xtables.TableMissing as e:
                self._absent.add(table_id)
                if matters:
                    raise
                self._log.info("no rules where they would do nothing", reason=str(e))
                return
            self._absent.discard(table_id)
            todo = edits(table, layout)
            if todo:
                self._access.commit(*table_id, todo)
                table = self._access.read_table(*table_id)
            self._tables[table_id] = table

    def _read(self, table_id: TableId) -> Table:
        try:
            table = self._access.read_table(*table_id)
        except xtables.TableMissing:
            return Table()
        self._absent.discard(table_id)
        return table
