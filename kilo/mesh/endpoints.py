"""Which addresses can be the endpoint of a WireGuard peer in a mesh. Pure.

``unusable_endpoint`` judges an address by itself, ``Overlay`` against the mesh: the packets of a tunnel
cannot be sent to an address that is reached through the tunnel.
"""

from __future__ import annotations

from collections.abc import Iterable

from kilo.errors import ProtocolError
from kilo.mesh.overlap import Places
from kilo.model.endpoints import unusable_endpoint
from kilo.model.net import bounds, contains, single

__all__ = ["Overlay", "unusable_endpoint"]


class Overlay:
    """The addresses that exist only inside the mesh: pods' and WireGuard's own."""

    def __init__(self, subnet: str, pod_cidrs: Iterable[str]) -> None:
        """``subnet``: of WireGuard addresses. All in Network or Interface form."""
        cidrs = list(pod_cidrs)
        pods: Places[str] = Places()
        pods.add(cidrs, cidrs)
        self._pods = [(version, ~width, table) for (version, width), table in pods.tables.items()]
        self._subnet = subnet
        self._version, self._first, self._last = bounds(subnet)

    def holds(self, address: str, allowed_ips: Iterable[str] = (), connected: str = "") -> str:
        """Why ``address`` (IP) is reached through the tunnel alone, "" if it is not.

        ``allowed_ips``: those of the peer that would have it as its endpoint. Leave out a node's internal
        IP: it has no route through WireGuard while it is the node's endpoint. ``connected`` (Network): one
        with the address to which this host is connected, "" if there is none.
        """
        # The kernel prefers the longest prefix: the link's own route, if its network is the narrower one.
        _, low, high = bounds(connected) if connected else (0, 0, 1 << 128)
        ip = address.partition("%")[0] if "%" in address else address
        try:
            version, number, _ = bounds(single(ip))
        except ProtocolError:
            return ""
        for of_version, mask, table in self._pods:
            if of_version == version and ~mask <= high - low and (cidr := table.get(number & mask)):
                return f"{address} lies in the pod CIDR {cidr}"
        wide = self._last - self._first > high - low
        if version == self._version and self._first <= number <= self._last and not wide:
            return f"{address} lies in the subnet {self._subnet} of WireGuard addresses"
        for network in allowed_ips:
            if contains(network, ip):
                return f"{address} lies in {network}, an allowed IP of the same peer"
        return ""
