"""What both firewalls do to packets, on Debian's kernel: the same tests as on this machine's."""

from tests.unit.netctl.firewall.test_traffic import *  # noqa: F403
