"""What the hosts are connected by: sites with a LAN behind a router, and an internet that joins them.

Addresses of the internet are those set aside for documentation. A site either owns a piece of it,
and its hosts have public addresses beside private ones, or its router hides private ones (NAT).
"""

from __future__ import annotations

from pathlib import Path

from tests.lab.host import Host

API_ADDRESS = "203.0.113.2"
MOST_SITES = 15


def connect(a: Host, device_a: str, b: Host, device_b: str) -> None:
    """A cable between two hosts."""
    a.ip(f"link add {device_a} type veth peer name {device_b} netns {b.pid}", f"link set {device_a} up")
    b.ip(f"link set {device_b} up")


class Site:
    """A LAN, 172.16.N.0/24, and its router, which is .1. A public site has 198.51.100.(16 N)/28 too."""

    def __init__(self, name: str, number: int, nat: bool, logs: Path) -> None:
        self.name = name
        self.nat = nat
        self.number = number
        self.router = Host(f"router-{name}", logs)
        self.hosts: list[Host] = []
        self._free: list[int] = []
        """The numbers of members that have left, for those who come."""
        self.router.ip(
            "link add lan type bridge",
            "link set lan up",
            f"addr add {self.private(1)}/24 dev lan",
            *([] if nat else [f"addr add {self.public(1)}/28 dev lan"]),
        )

    def private(self, number: int) -> str:
        """The private address of member ``number`` of the LAN; 1 is the router."""
        return f"172.16.{self.number}.{number}"

    def public(self, number: int) -> str:
        """The public address of member ``number`` of the LAN, if the site has any."""
        return f"198.51.100.{16 * self.number + number}"

    def add(self, host: Host) -> None:
        """Put ``host`` on the LAN, with addresses on eth0, a default route, and an entry in /etc/hosts."""
        if self._free:
            number = self._free.pop()
            self.hosts[number - 2] = host
        else:
            self.hosts.append(host)
            number = len(self.hosts) + 1
        connect(self.router, f"lan{number}", host, "eth0")
        self.router.ip(f"link set lan{number} master lan")
        host.ip(
            f"addr add {self.private(number)}/24 dev eth0",
            *([] if self.nat else [f"addr add {self.public(number)}/28 dev eth0"]),
            f"route add default via {self.private(1) if self.nat else self.public(1)}",
        )
        hosts = host.read("/etc/hosts")
        host.write("/etc/hosts", f"{hosts}{self.private(number)} {host.name}\n")

    def remove(self, host: Host) -> None:
        """Take ``host`` off the LAN; the next one that is added gets its addresses."""
        number = self.hosts.index(host) + 2
        self.router.ip(f"link del lan{number}")
        self._free.append(number)


class Underlay:
    """The internet, with the host of the API server on it, and the sites."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.sites: dict[str, Site] = {}
        self.internet = Host("internet", logs)
        self.api = Host("api", logs)
        connect(self.internet, "api", self.api, "eth0")
        self.internet.ip("addr add 203.0.113.1/30 dev api")
        self.api.ip(f"addr add {API_ADDRESS}/30 dev eth0", "route add default via 203.0.113.1")

    def site(self, name: str, nat: bool = False) -> Site:
        """The site of that name; it is made when it is first asked for, with ``nat`` or without."""
        if name in self.sites:
            return self.sites[name]
        number = len(self.sites) + 1
        if number > MOST_SITES:
            raise ValueError(f"no more than {MOST_SITES} sites")
        site = Site(name, number, nat, self._logs)
        self.sites[name] = site
        device = f"site{number}"
        near, far = f"203.0.113.{4 * number + 1}", f"203.0.113.{4 * number + 2}"
        connect(self.internet, device, site.router, "wan")
        site.router.ip(f"addr add {far}/30 dev wan", f"route add default via {near}")
        self.internet.ip(f"addr add {near}/30 dev {device}")
        if nat:
            masquerade = "-w -t nat -A POSTROUTING -o wan -j MASQUERADE"
            site.router.run("iptables-legacy", *masquerade.split())
        else:
            self.internet.ip(f"route add {site.public(0)}/28 via {far}")
        return site

    def close(self) -> None:
        for site in self.sites.values():
            for host in site.hosts:
                host.close()
            site.router.close()
        self.api.close()
        self.internet.close()
