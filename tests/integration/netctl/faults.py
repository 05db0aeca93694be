"""A kernel that refuses some of what it is asked, at the boundary where all changes pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kilo.netctl.netlink.socket import KernelError, Message, Netlink, Request


class Refusing(Netlink):
    """The kernel, but for changes for which ``refuse`` gives an error number, and listings of a kind
    for which ``conceal`` does: they never get there.

    ``refused`` holds those changes, in order.
    """

    conceal: Callable[[int], int] = staticmethod(lambda kind: 0)

    def __init__(self, refuse: Callable[[Request], int] = lambda request: 0) -> None:
        super().__init__()
        self.refuse = refuse
        self.refused: list[Request] = []

    def change(self, requests: Sequence[Request]) -> list[KernelError | None]:
        numbers = [self.refuse(request) for request in requests]
        self.refused += [request for request, number in zip(requests, numbers, strict=True) if number]
        passed = [request for request, number in zip(requests, numbers, strict=True) if not number]
        answers = iter(super().change(passed))
        return [KernelError(number) if number else next(answers) for number in numbers]

    def dump(self, kind: int, body: bytes, optional: bool = False) -> list[Message]:
        if number := self.conceal(kind):
            raise KernelError(number)
        return super().dump(kind, body, optional)
