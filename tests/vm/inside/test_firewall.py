"""What both firewalls do to packets, on Debian's kernel: the same tests as on this machine's."""

import pytest

from tests.integration.netctl.firewall.test_traffic import *  # noqa: F403

pytestmark = pytest.mark.long
