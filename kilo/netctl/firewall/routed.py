"""Members of sets that count only while a route to them can stand.

Where it cannot, packets take another way than through the mesh, and have to be masqueraded there. Pure.
Called by kilo.netctl.firewall.reconciler.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Set

from kilo.model.plan import FirewallSet, PlanItem, Route, SetEntry, route_key

Change = Callable[[FirewallSet, str], None]


class RoutedEntries:
    """Calls ``add`` and ``drop`` as members come to count and cease to."""

    def __init__(self, add: Change, drop: Change) -> None:
        self._add, self._drop = add, drop
        self._entries: dict[str, SetEntry] = {}
        self._by_route: dict[str, set[str]] = {}
        self._routes: dict[str, str] = {}
        """The routes that the plan has in the main table: plan key to destination."""
        self._absent: Set[str] = frozenset()
        self._counted: set[str] = set()

    def keep(self, entry: SetEntry) -> bool:
        """Take ``entry`` over if it depends on a route. ``route`` has to be called before it counts."""
        if entry.route and self._entries.get(entry.key) == entry:
            return True
        self.forget(entry.key)
        if not entry.route:
            return False
        self._drop(entry.set, entry.network)  # it counted if it depended on no route before
        self._entries[entry.key] = entry
        self._by_route.setdefault(entry.route, set()).add(entry.key)
        return True

    def forget(self, key: str) -> bool:
        """The plan has no entry ``key`` any more. Whether there was one that depended on a route."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        keys = self._by_route[entry.route]
        keys.remove(key)
        if not keys:
            del self._by_route[entry.route]
        self._count(key, entry, counts=False)
        return True

    def route(self, upserts: Iterable[PlanItem], removals: Collection[str]) -> None:
        """The plan changed: these are its new items."""
        touched = {self._routes.pop(key) for key in removals if key in self._routes}
        for item in upserts:
            if isinstance(item, Route) and not item.table:
                self._routes[item.key] = item.dst
                touched.add(item.dst)
            elif isinstance(item, SetEntry) and item.route:
                touched.add(item.route)
        for network in touched:
            self._judge(network)

    def leave_out(self, absent: Set[str]) -> bool:
        """The routes to these networks cannot stand, all others can. Whether members came or went."""
        changed = absent ^ self._absent
        self._absent = absent
        return True in [self._judge(network) for network in changed]

    def _judge(self, network: str) -> bool:
        counts = route_key(network) in self._routes and network not in self._absent
        return True in [self._count(k, self._entries[k], counts) for k in self._by_route.get(network, ())]

    def _count(self, key: str, entry: SetEntry, counts: bool) -> bool:
        """Whether that is news."""
        if counts == (key in self._counted):
            return False
        if counts:
            self._counted.add(key)
            self._add(entry.set, entry.network)
        else:
            self._counted.remove(key)
            self._drop(entry.set, entry.network)
        return True
