"""What both firewalls do to packets, on Debian's kernel: the same tests as on this machine's."""

from tests.unit.netctl.test_firewall_traffic import *  # noqa: F403
