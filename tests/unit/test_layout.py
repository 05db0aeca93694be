"""Where tests are: each module of kilo is tested by files of its name, or by the file that is listed here."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
KINDS = ("unit", "integration")
ELSEWHERE = {
    "bus/door": "unit/bus/test_hostile_reader.py",
    "bus/publisher": "unit/bus/test_bus.py",
    "bus/subscriber": "unit/bus/test_bus.py",
    "bus/topics": "unit/bus/test_bus.py",
    "bus/wire": "unit/bus/test_bus.py",
    "bus/zmtp": "integration/bus/test_secrets.py",
    "cli/heard": "unit/cli/test_status.py",
    "cli/objectfile": "unit/cli/test_plan.py",
    "cli/planinput": "unit/cli/test_plan.py",
    "cli/running": "integration/cli/test_operate.py",
    "doctor/agent": "integration/cli/test_doctor.py",
    "doctor/api": "integration/cli/test_doctor.py",
    "doctor/finding": "integration/cli/test_doctor.py",
    "doctor/host": "integration/cli/test_doctor.py",
    "errors": "unit/bus/test_bus.py",
    "health/site": "unit/health/test_page.py",
    "health/style": "unit/health/test_page.py",
    "leash": "integration/supervisor/test_clean_up_alone.py",
    "mesh/describe": "unit/test_conformance.py",
    "model/host": "integration/netctl/test_host.py",
    "model/node": "unit/watcher/test_translate.py",
    "model/plan": "unit/netctl/test_validate.py",
    "model/readiness": "unit/health/test_gather.py",
    "model/settings": "unit/mesh/test_planner.py",
    "model/workers": "unit/deploy/test_least_privilege.py",
    "netctl/cover": "unit/netctl/test_guard.py",
    "netctl/detour": "unit/netctl/test_guard.py",
    "netctl/facts": "integration/netctl/test_host.py",
    "netctl/failures": "unit/netctl/test_progress.py",
    "netctl/firewall/access": "integration/netctl/firewall/test_lacks.py",
    "netctl/firewall/attempts": "integration/netctl/firewall/test_reconcile.py",
    "netctl/firewall/backend": "integration/netctl/firewall/test_choice.py",
    "netctl/firewall/layout": "unit/netctl/firewall/test_edits.py",
    "netctl/firewall/legacy": "integration/netctl/firewall/test_reconcile.py",
    "netctl/firewall/masquerade": "integration/netctl/conntrack/test_masquerade.py",
    "netctl/firewall/members": "unit/netctl/firewall/test_nft_intervals.py",
    "netctl/firewall/nft_expressions": "unit/netctl/firewall/test_nft_edits.py",
    "netctl/firewall/nft_ipsets": "integration/netctl/firewall/test_nft_reconcile.py",
    "netctl/firewall/nft_layout": "unit/netctl/firewall/test_nft_edits.py",
    "netctl/firewall/nft_messages": "integration/netctl/firewall/test_nft_reconcile.py",
    "netctl/firewall/nft_picture": "integration/netctl/firewall/test_nft_reconcile.py",
    "netctl/firewall/nft_socket": "integration/netctl/firewall/test_nft_reconcile.py",
    "netctl/firewall/nft_state": "unit/netctl/firewall/test_nft_edits.py",
    "netctl/firewall/reconciler": "integration/netctl/firewall/test_reconcile.py",
    "netctl/firewall/rehearsed": "integration/netctl/test_diff.py",
    "netctl/firewall/rules": "unit/netctl/firewall/test_edits.py",
    "netctl/firewall/selected": "integration/netctl/firewall/test_choice.py",
    "netctl/firewall/sets": "integration/netctl/firewall/test_reconcile.py",
    "netctl/firewall/tables": "integration/netctl/firewall/test_reconcile.py",
    "netctl/firewall/xtables": "integration/netctl/firewall/test_reconcile.py",
    "netctl/foreign": "integration/netctl/firewall/test_foreign.py",
    "netctl/netlink/attributes": "integration/netctl/test_netlink.py",
    "netctl/netlink/flows": "integration/netctl/test_flows.py",
    "netctl/netlink/generic": "integration/netctl/wireguard/test_devices.py",
    "netctl/netlink/listing": "integration/netctl/test_flows.py",
    "netctl/netlink/messages": "integration/netctl/test_netlink.py",
    "netctl/netlink/socket": "integration/netctl/test_netlink.py",
    "netctl/objects": "unit/netctl/test_reconcile.py",
    "netctl/plane": "unit/netctl/test_passes.py",
    "netctl/probe": "unit/cli/test_probe.py",
    "netctl/rehearsal": "integration/netctl/test_diff.py",
    "netctl/show": "integration/netctl/test_diff.py",
    "netctl/steps": "integration/netctl/test_interface.py",
    "netctl/userspace": "integration/netctl/test_interface.py",
    "netctl/wireguard/device": "integration/netctl/wireguard/test_devices.py",
    "netctl/wireguard/held": "integration/netctl/test_worker_branch.py",
    "netctl/wireguard/kernel": "integration/netctl/wireguard/test_devices.py",
    "netctl/wireguard/uapi": "integration/netctl/wireguard/test_devices.py",
    "sandbox/descriptors": "integration/sandbox/test_entry.py",
    "sandbox/given": "unit/sandbox/test_profiles.py",
    "sandbox/identity": "integration/sandbox/test_entry.py",
    "sandbox/libc": "integration/sandbox/test_entry.py",
    "sandbox/profile": "unit/sandbox/test_profiles.py",
    "sockets": "integration/supervisor/test_control.py",
    "supervisor/child": "integration/supervisor/test_parent.py",
    "supervisor/forkserver": "integration/supervisor/test_parent.py",
    "supervisor/preload": "integration/supervisor/test_parent.py",
    "supervisor/process": "integration/supervisor/test_parent.py",
    "watcher/reasons": "unit/watcher/test_client_refusals.py",
    "watcher/url": "unit/watcher/test_session.py",
}
"""Modules without tests of their name, and the file that tests them. The table may only become shorter."""


def modules() -> list[str]:
    """All modules below kilo, as ``mesh/planner``."""
    paths = (path.relative_to(ROOT / "kilo") for path in (ROOT / "kilo").rglob("*.py"))
    return sorted(str(path.with_suffix("")) for path in paths if not path.name.startswith("__"))


def files_for(module: str) -> list[Path]:
    """The files with tests of ``module`` by its name: in its package's folder, or in a folder of its own."""
    package, _, name = module.rpartition("/")
    found: list[Path] = []
    for folder in (ROOT / "tests" / kind / package for kind in KINDS):
        found += folder.glob(f"test_{name}.py")
        found += folder.glob(f"test_{name}_*.py")
        found += (folder / name).glob("test_*.py")
    return found


def test_modules_of_kilo_have_files_for_their_name_or_an_entry_in_the_table() -> None:
    assert [m for m in modules() if not files_for(m) and m not in ELSEWHERE] == []


def test_entries_of_the_table_are_needed_and_name_a_file() -> None:
    assert [m for m in ELSEWHERE if m not in modules() or files_for(m)] == []
    assert [path for path in ELSEWHERE.values() if not (ROOT / "tests" / path).is_file()] == []


def test_folders_of_tests_are_those_of_packages() -> None:
    for kind in KINDS:
        for folder in (ROOT / "tests" / kind).rglob("*"):
            if folder.is_dir() and folder.name != "__pycache__":
                place = folder.relative_to(ROOT / "tests" / kind)
                known = (ROOT / "kilo" / place, ROOT / "kilo" / place.with_suffix(".py"), ROOT / place)
                assert any(path.exists() for path in known), folder
