from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilo.model.node import Announcement, Endpoint
from kilo.watcher import announcer as module
from kilo.watcher.announcer import Announcer, Overwritten, Patched, PatchFailed, Report
from kilo.watcher.client import Api, ApiError
from kilo.watcher.objects import decode_node
from tests.apiserver import Admin, Standin
from tests.apiserver import store as kinds
from tests.clock import Given, bound
from tests.feeding import PATIENCE, eventually

KEY = base64.b64encode(b"k" * 32).decode()
HELLO = Announcement(
    endpoint=Endpoint("203.0.113.1", 51820, "203.0.113.1"),
    internal_ip="10.0.0.1/24",
    key=KEY,
    granularity="location",
)
SAID = {
    "endpoint": "203.0.113.1:51820",
    "internal-ip": "10.0.0.1/24",
    "key": KEY,
    "wireguard-ip": "",
    "discovered-endpoints": "{}",
    "granularity": "location",
    "cni-compatibility-ip": "",
}


class Agent:
    """An announcer for node ``own``, fed by the test as the watch would."""

    def __init__(self, api: Api, standin: Standin) -> None:
        self.reports: list[Report] = []
        self._standin = standin
        self.announcer = Announcer(api, "own", self.reports.append)
        self.announcer.start()

    def count(self, kind: type) -> int:
        return sum(isinstance(report, kind) for report in self.reports)

    def observe(self) -> None:
        self.announcer.observe(decode_node(self._standin.store.get(kinds.NODES, "own").raw))

    def patches(self) -> list[dict[str, Any]]:
        """The annotations of every patch so far, without the prefix."""
        bodies = [msgspec.json.decode(r.body) for r in self._standin.requests if r.method == "PATCH"]
        return [
            {k.removeprefix("kilo.squat.ai/"): v for k, v in body["metadata"]["annotations"].items()}
            for body in bodies
        ]


@pytest.fixture
def admin(standin: Standin) -> Iterator[Admin]:
    with closing(standin.admin()) as admin:
        yield admin


@pytest.fixture
def make(standin: Standin, tmp_path: Path) -> Iterator[Callable[[], Agent]]:
    with ExitStack() as stack:

        def make() -> Agent:
            api = stack.enter_context(closing(Api(standin.kubeconfig(tmp_path / "kubeconfig"), "")))
            agent = Agent(api, standin)
            stack.callback(agent.announcer._thread.join, 5)
            stack.callback(agent.announcer.close, False)
            return agent

        yield make


@pytest.fixture
def agent(make: Callable[[], Agent]) -> Agent:
    return make()


def said(admin: Admin) -> dict[str, str]:
    return admin.annotations("own")


def test_nothing_is_written_before_there_is_something_to_say(agent: Agent, admin: Admin) -> None:
    admin.create_node("own")
    agent.observe()
    time.sleep(0.3)
    assert agent.patches() == []


@pytest.mark.timing
def test_the_first_announcement_is_written_at_once_also_on_a_node_without_annotations(
    agent: Agent, admin: Admin
) -> None:
    admin.create_node("own")
    began = int(time.time())
    with Given() as clock:
        agent.announcer.announce(HELLO)
        eventually(lambda: said(admin))
    assert clock.seconds < bound(1)
    found = said(admin)
    assert began <= int(found.pop("last-seen")) <= time.time()
    assert found == SAID


def test_only_what_differs_is_written(agent: Agent, admin: Admin) -> None:
    admin.create_node("own", {**SAID, "key": "old", "leader": "", "someone/else": "x"})
    agent.observe()
    agent.announcer.announce(HELLO)
    eventually(agent.patches)
    assert agent.patches()[0].keys() == {"key", "last-seen"}
    agent.announcer.announce(msgspec.structs.replace(HELLO, granularity="full"))
    eventually(lambda: len(agent.patches()) == 2)
    assert agent.patches()[1].keys() == {"granularity", "last-seen"}
    assert said(admin)["leader"] == ""
    agent.announcer.announce(msgspec.structs.replace(HELLO, granularity="full"))
    time.sleep(0.3)
    assert len(agent.patches()) == 2, "the same again is nothing new"


def test_a_check_in_writes_the_time_and_nothing_else(
    make: Callable[[], Agent], admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_IN_EVERY", 0.3)
    admin.create_node("own")
    agent = make()
    agent.announcer.announce(HELLO)
    eventually(lambda: len(agent.patches()) >= 4)
    assert all(patch.keys() == {"last-seen"} for patch in agent.patches()[1:])
    assert all(isinstance(report, Patched) for report in agent.reports)


def test_what_somebody_else_took_away_is_written_again(agent: Agent, admin: Admin) -> None:
    admin.create_node("own")
    agent.announcer.announce(HELLO)
    eventually(lambda: agent.count(Patched))
    admin.annotate("own", key="theirs", endpoint=None)
    agent.observe()
    eventually(lambda: said(admin).items() >= SAID.items())
    assert agent.count(Overwritten) == 0


@pytest.mark.parametrize("garbage", ["0", "-5", "yesterday", "9" * 23, None])
def test_a_check_in_that_somebody_spoilt_is_made_again_at_once(
    agent: Agent, admin: Admin, garbage: str | None
) -> None:
    """Everybody else drops the node when its last-seen is none."""
    admin.create_node("own")
    agent.announcer.announce(HELLO)
    eventually(lambda: agent.count(Patched))
    admin.annotate("own", last_seen=garbage)
    agent.observe()
    eventually(lambda: said(admin).get("last-seen", "").startswith(str(int(time.time()))[:6]), 3)
    assert agent.count(Overwritten) == 0


def test_an_older_state_of_the_node_does_not_count(agent: Agent, admin: Admin, standin: Standin) -> None:
    admin.create_node("own", {"key": "x"})
    older = decode_node(standin.store.get(kinds.NODES, "own").raw)
    agent.announcer.announce(HELLO)
    eventually(lambda: agent.count(Patched))
    agent.announcer.observe(older)
    time.sleep(0.3)
    assert len(agent.patches()) == 1


def test_a_fight_over_an_annotation_is_told_and_not_fought_on(
    make: Callable[[], Agent], admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIGHT_WINDOW", 3600.0)
    monkeypatch.setattr(module, "CHECK_IN_EVERY", 0.6)
    monkeypatch.setattr(module, "BURST_PERIOD", 0.0)
    admin.create_node("own")
    agent = make()
    began = time.monotonic()
    agent.announcer.announce(HELLO)

    def overwrite() -> None:
        """What was written and is known by the agent to have been."""
        if said(admin).get("key") != KEY:
            return
        if agent.count(Patched) == sum("last-seen" in patch for patch in agent.patches()):
            admin.annotate("own", key=f"theirs {time.monotonic()}")
            agent.observe()

    while Overwritten(("key",)) not in agent.reports:
        assert time.monotonic() < began + PATIENCE
        overwrite()
        time.sleep(0.02)
    end = time.monotonic() + 0.9
    while time.monotonic() < end:
        overwrite()
        time.sleep(0.02)
    patched, elapsed = agent.count(Patched), time.monotonic() - began
    assert patched <= module.FIGHT_LIMIT + 1 + elapsed / module.CHECK_IN_EVERY + 1
    monkeypatch.setattr(module, "FIGHT_WINDOW", 1.2)
    eventually(lambda: Overwritten(()) in agent.reports, what="the fight has ended")
    assert said(admin)["key"] == KEY


class QuickWatch(Api):
    """The watch brings what a patch has changed before the patch is answered, as a real server may; the
    last ``lost`` answers do not come at all."""

    lost = 0

    def patch(self, *arguments: Any) -> bytes:
        answer = super().patch(*arguments)
        self.agent.observe()
        if self.lost:
            self.lost -= 1
            raise ApiError("cannot patch node own: timed out")
        return answer

    agent: Agent


@pytest.fixture
def quick(standin: Standin, tmp_path: Path) -> Iterator[Agent]:
    with closing(QuickWatch(standin.kubeconfig(tmp_path / "kubeconfig"), "")) as api:
        api.agent = Agent(api, standin)
        yield api.agent
        api.agent.announcer.close(False)
        api.agent.announcer._thread.join(5)


@pytest.mark.parametrize("lost", [0, 1])
def test_what_the_watch_brings_before_the_answer_is_our_own(
    quick: Agent, admin: Admin, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    monkeypatch.setattr(module, "BURST_PERIOD", 0.0)
    admin.create_node("own", {"wireguard-ip": "10.4.0.250/16"})
    quick.observe()
    for number in range(6):
        quick.announcer._api.lost = lost if number else 0  # type: ignore[attr-defined]
        address = f"10.4.0.{number}/16"
        quick.announcer.announce(msgspec.structs.replace(HELLO, wireguard_ip=address))
        eventually(lambda n=number: quick.count(Patched) > n)  # type: ignore[misc]
        assert said(admin)["wireguard-ip"] == address
    assert quick.count(Overwritten) == 0
    assert not quick.announcer._overwritten


def test_somebody_else_is_still_noticed_where_the_watch_is_quick(
    quick: Agent, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BURST_PERIOD", 0.0)
    admin.create_node("own")
    quick.announcer.announce(HELLO)
    for number in range(module.FIGHT_LIMIT):
        eventually(lambda n=number: quick.count(Patched) > n)  # type: ignore[misc]
        admin.annotate("own", key=f"theirs {number}")
        quick.observe()
    eventually(lambda: Overwritten(("key",)) in quick.reports)


def test_what_is_changed_on_the_way_in_is_not_written_again_and_again(
    standin: Standin, tmp_path: Path, admin: Admin
) -> None:
    """As an admission webhook may."""

    class Changing(Api):
        def patch(self, path: str, patch: Any, *more: Any) -> bytes:
            annotations = dict(patch["metadata"]["annotations"])
            annotations.pop("kilo.squat.ai/granularity", None)
            return super().patch(path, {"metadata": {"annotations": annotations}}, *more)

    admin.create_node("own")
    with closing(Changing(standin.kubeconfig(tmp_path / "kubeconfig"), "")) as api:
        agent = Agent(api, standin)
        agent.announcer.announce(HELLO)
        eventually(lambda: Overwritten(("granularity",)) in agent.reports)
        time.sleep(0.3)
        assert len(agent.patches()) == module.FIGHT_LIMIT
        agent.announcer.close(False)


def test_an_answer_about_another_node_is_none(agent: Agent, admin: Admin, standin: Standin) -> None:
    admin.create_node("own")
    admin.create_node("other")
    agent.announcer._path = agent.announcer._path.replace("own", "other")
    agent.announcer.announce(HELLO)
    eventually(lambda: agent.count(PatchFailed))
    failed = next(report.error for report in agent.reports if isinstance(report, PatchFailed))
    assert str(failed) == "cannot patch node own: the answer is not about this node"
    assert agent.count(Patched) == 0


def test_many_changes_are_few_patches_and_the_last_one_wins(
    agent: Agent, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BURST_PERIOD", 1.5)
    admin.create_node("own")
    started = time.monotonic()
    for number in range(200):
        agent.announcer.announce(msgspec.structs.replace(HELLO, wireguard_ip=f"10.4.0.{number}/16"))
        time.sleep(0.002)
    patches, elapsed = len(agent.patches()), time.monotonic() - started
    assert patches <= module.BURST * (1 + elapsed // module.BURST_PERIOD)
    eventually(lambda: said(admin).get("wireguard-ip") == "10.4.0.199/16")


def test_what_fails_is_tried_again_and_what_is_newest_is_written(
    agent: Agent, admin: Admin, standin: Standin
) -> None:
    admin.create_node("own")
    standin.fail(503, times=3, match="PATCH")
    agent.announcer.announce(HELLO)
    eventually(lambda: agent.count(PatchFailed))
    agent.announcer.announce(msgspec.structs.replace(HELLO, granularity="full"))
    eventually(lambda: said(admin).get("granularity") == "full")
    failed = [report.error for report in agent.reports if isinstance(report, PatchFailed)]
    assert [error.status for error in failed] == [503] * 3
    assert str(failed[0]).startswith("cannot patch node own: 503 Service Unavailable")


def test_a_node_that_comes_later_is_written_to_then(agent: Agent, admin: Admin) -> None:
    agent.announcer.announce(HELLO)
    eventually(lambda: agent.count(PatchFailed))
    admin.create_node("own")
    eventually(lambda: said(admin).items() >= SAID.items())


def test_a_node_that_was_deleted_and_came_back_is_written_to_again(agent: Agent, admin: Admin) -> None:
    admin.create_node("own")
    agent.announcer.announce(HELLO)
    eventually(lambda: agent.count(Patched))
    admin.delete_node("own")
    agent.announcer.forget()
    admin.create_node("own")
    agent.observe()
    eventually(lambda: said(admin).items() >= SAID.items())


def test_at_the_end_what_we_said_is_taken_away_and_nothing_else(agent: Agent, admin: Admin) -> None:
    admin.create_node("own", {"location": "eu", "leader": "", "persistent-keepalive": "10", "a/b": "c"})
    agent.announcer.announce(HELLO)
    eventually(lambda: agent.count(Patched))
    assert agent.announcer.close(remove=True) == ""
    assert said(admin) == {"location": "eu", "leader": "", "persistent-keepalive": "10"}
    assert admin.get(kinds.NODES, "own")["metadata"]["annotations"]["a/b"] == "c"


def test_without_removal_what_we_said_stays(agent: Agent, admin: Admin) -> None:
    admin.create_node("own")
    agent.announcer.announce(HELLO)
    eventually(lambda: agent.count(Patched))
    assert agent.announcer.close(remove=False) == ""
    assert said(admin).items() >= SAID.items()


def test_the_removal_is_tried_again_for_a_while(agent: Agent, admin: Admin, standin: Standin) -> None:
    admin.create_node("own", {"key": "x"})
    standin.fail(503, times=2, match="PATCH")
    assert agent.announcer.close(remove=True) == ""
    assert said(admin) == {}


@pytest.mark.timing
@pytest.mark.parametrize("how", ["refuse", "pause"])
def test_the_removal_gives_up_in_time_where_the_api_is_away(
    agent: Agent, admin: Admin, standin: Standin, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(module, "CLEAN_UP_WITHIN", 1.6)
    admin.create_node("own", {"key": "x"})
    admin.close()
    getattr(standin, how)()
    with Given() as clock:
        assert agent.announcer.close(remove=True) != ""
    assert clock.seconds < bound(module.CLEAN_UP_WITHIN + 0.5)


def test_the_removal_also_comes_to_its_right_while_the_api_fails(
    agent: Agent, admin: Admin, standin: Standin
) -> None:
    admin.create_node("own", {"key": "x"})
    standin.fail(429, retry_after=60, match="PATCH")
    agent.announcer.announce(HELLO)
    eventually(lambda: agent.count(PatchFailed))
    assert agent.announcer.close(remove=True) == ""
    assert said(admin) == {}
