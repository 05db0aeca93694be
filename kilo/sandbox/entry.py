"""The one call: the parts in their order, and a look at what came of them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from dataclasses import replace

from kilo.errors import PermanentError
from kilo.sandbox import descriptors, identity, landlock, seccomp
from kilo.sandbox.home import give, hand_over
from kilo.sandbox.profile import Access, Profile, Refusals, Result, with_identity_as_it_is
from kilo.sandbox.reach import user_for
from kilo.sandbox.status import CAPABILITIES, Status, mask_of, names_of, read_status


def enter(profile: Profile, keep: Iterable[int] = (), require: bool = False) -> Result:
    """Leave this process with what ``profile`` says, and only the descriptors 0, 1, 2 and ``keep``.

    What the kernel or the host refuses is named in the result, and the rest is applied all the same.
    ``require``: raises PermanentError, naming all that was refused, when the rest has been applied. For a
    process with one thread. Raises PermanentError also where there is no /proc.
    """
    refused = Refusals()
    try:
        _close(keep, refused)
        profile = _as_far_as_it_can_be(profile, refused)
        if profile.landlock:
            landlock.make_missing(profile.rules)
        uid, why = user_for(profile)
        if why:
            refused.add("user", why, errno.EACCES)
        _give_directories(profile, uid)
        identity.become(uid, profile, refused)
        identity.no_more_privileges(refused)
        abi = landlock.restrict(profile, refused) if profile.landlock else 0
        seccomp.install(refused, profile.processes)
        status = read_status()
    except OSError as e:
        raise PermanentError(f"the sandbox needs /proc, which cannot be read: {e.strerror}") from e
    _compare(profile, uid, status, refused)
    if abi:
        _look(profile, refused)
    result = Result(status, abi, refused.all())
    if require and result.refused:
        raise PermanentError(f"the sandbox is not whole: {'; '.join(map(str, result.refused))}")
    return result


def _as_far_as_it_can_be(profile: Profile, refused: Refusals) -> Profile:
    """Users of their own are for processes whose parent can give them, their directories, and signals."""
    if profile.spared:
        refused.add("user", profile.spared)
        refused.add("landlock", profile.spared)
    if lacking := identity.lacking_for(profile):
        refused.add("user", f"kg cannot give it one, without {' '.join(lacking)}", errno.EPERM)
        as_it_is = with_identity_as_it_is(profile)
        return replace(as_it_is, capabilities=profile.capabilities, ambient=profile.ambient)
    return profile


def _give_directories(profile: Profile, uid: int) -> None:
    if profile.home:
        hand_over(profile.home, uid, profile.home_group, profile.home_mode)
    for rule in profile.rules:
        with contextlib.suppress(OSError):
            if rule.owner and not set(os.listdir(rule.path)) - set(rule.ours):
                give(rule.path, rule.owner, rule.owner, rule.directory)


def _close(keep: Iterable[int], refused: Refusals) -> None:
    try:
        descriptors.close_others(keep)
    except OSError as e:
        refused.add("descriptors", e)


def _compare(profile: Profile, uid: int, status: Status, refused: Refusals) -> None:
    """What the kernel says that this process is, beside what it was to be."""
    capabilities = _ordered(profile.capabilities)
    passed_on = _ordered(profile.ambient)
    for name, wanted, found in (
        ("user", (uid,) * 4, status.uids),
        ("group", (profile.gid,) * 4, status.gids),
        ("groups", set(profile.groups), set(status.groups)),
        ("capabilities", (capabilities, capabilities), (status.permitted, status.effective)),
        ("ambient capabilities", (passed_on, passed_on), (status.inheritable, status.ambient)),
        ("no_new_privs", True, status.no_new_privs),
        ("seccomp", 2, status.seccomp),
        ("threads", 1, status.threads),
    ):
        if wanted != found:
            refused.add(name, f"it is {_shown(found)}, not {_shown(wanted)}")
    if beyond := set(status.bounding) - set(capabilities):
        refused.add("bounding set", f"it has {len(beyond)} of {len(CAPABILITIES)} capabilities too many")


def _ordered(names: tuple[str, ...]) -> tuple[str, ...]:
    return names_of(mask_of(names))


def _shown(value: object) -> str:
    return str(sorted(value)) if isinstance(value, set) else str(value)


def _look(profile: Profile, refused: Refusals) -> None:
    """Try what Landlock must refuse: a restriction that does not restrict is none."""
    if any(rule.path == "/" and rule.access & (Access.READ | Access.LIST) for rule in profile.rules):
        return
    with contextlib.suppress(OSError):
        os.listdir("/")
        refused.add("landlock", "the root directory can be listed all the same")
