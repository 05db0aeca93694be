"""Which networks cover which addresses, kept up to date as both change. Pure; used by kilo.netctl.guard.

The cost of a change is a look-up for each length of prefix that occurs, whatever the number of networks.
"""

from __future__ import annotations

from collections.abc import Collection

from kilo.model.net import bounds, parse_ip


class Cover:
    """Networks have keys, addresses have owners; several may name the same.

    ``delicate``: of each network that covers an address, the owners of all that it covers.
    Methods return the networks whose entry there changed.
    """

    def __init__(self) -> None:
        self.delicate: dict[str, dict[str, set[str]]] = {}
        """Network to owner to the owner's addresses in it."""
        self._networks: dict[str, str] = {}
        self._keys: dict[str, set[str]] = {}
        self._by_length: dict[tuple[int, int], dict[int, str]] = {}
        self._addresses: dict[str, frozenset[str]] = {}
        self._owners: dict[str, set[str]] = {}
        self._numbers: dict[int, dict[int, str]] = {4: {}, 6: {}}

    def network_of(self, key: str) -> str:
        """The network for which ``key`` stands, "" if there is none."""
        return self._networks.get(key, "")

    def has(self, network: str) -> bool:
        """Whether a key stands for exactly ``network``."""
        return network in self._keys

    def add_network(self, key: str, network: str) -> set[str]:
        """``key`` stands for ``network`` (Network form)."""
        old = self._networks.get(key)
        if old == network:
            return set()
        changed = self.drop_network(key)
        self._networks[key] = network
        keys = self._keys.setdefault(network, set())
        keys.add(key)
        if len(keys) == 1:
            version, first, last = bounds(network)
            self._by_length.setdefault((version, last - first), {})[first] = network
            for ip in self._inside(version, first, last):
                for owner in self._owners[ip]:
                    self.delicate.setdefault(network, {}).setdefault(owner, set()).add(ip)
                    changed.add(network)
        return changed

    def drop_network(self, key: str) -> set[str]:
        """``key`` stands for nothing any more."""
        network = self._networks.pop(key, None)
        if network is None:
            return set()
        keys = self._keys[network]
        keys.remove(key)
        if keys:
            return set()
        del self._keys[network]
        version, first, last = bounds(network)
        del self._by_length[version, last - first][first]
        if not self._by_length[version, last - first]:
            del self._by_length[version, last - first]
        return {network} if self.delicate.pop(network, None) else set()

    def set_addresses(self, owner: str, addresses: Collection[str]) -> set[str]:
        """``owner`` has these addresses (IP form) now."""
        old, new = self._addresses.get(owner, frozenset()), frozenset(addresses)
        if old == new:
            return set()
        if new:
            self._addresses[owner] = new
        else:
            del self._addresses[owner]
        changed = set()
        for ip in old - new:
            changed |= self._drop(owner, ip)
        for ip in new - old:
            changed |= self._add(owner, ip)
        return changed

    def _add(self, owner: str, ip: str) -> set[str]:
        address = parse_ip(ip)
        self._owners.setdefault(ip, set()).add(owner)
        self._numbers[address.version][int(address)] = ip
        around = self._around(ip)
        for network in around:
            self.delicate.setdefault(network, {}).setdefault(owner, set()).add(ip)
        return around

    def _drop(self, owner: str, ip: str) -> set[str]:
        owners = self._owners[ip]
        owners.remove(owner)
        if not owners:
            del self._owners[ip]
            address = parse_ip(ip)
            del self._numbers[address.version][int(address)]
        around = self._around(ip)
        for network in around:
            covered = self.delicate[network]
            covered[owner].discard(ip)
            if not covered[owner]:
                del covered[owner]
            if not covered:
                del self.delicate[network]
        return around

    def _around(self, ip: str) -> set[str]:
        """The networks that hold ``ip``."""
        address = parse_ip(ip)
        number, version = int(address), address.version
        return {
            table[number & ~width]
            for (of_version, width), table in self._by_length.items()
            if of_version == version and number & ~width in table
        }

    def _inside(self, version: int, first: int, last: int) -> list[str]:
        """The addresses in a network."""
        numbers = self._numbers[version]
        if last - first < len(numbers):
            return [numbers[n] for n in range(first, last + 1) if n in numbers]
        return [ip for number, ip in numbers.items() if first <= number <= last]
