"""The numbers of each part of a problem and the steps they lead to.

A part reads the `Ledger` (what the person has now, had at the start, what the friend has),
draws its numbers and returns them with its worked steps, or None where none would fit.
Everything stays whole, positive and at most `LARGEST`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from spectrim.data.tasks.word_problems.rng import between, one_of

LARGEST = 200
_ADDED, _GROUPS, _IN_GROUP = 60, 9, 12


@dataclass(frozen=True)
class Step:
    left: int
    sign: str
    right: int

    @property
    def result(self) -> int:
        match self.sign:
            case "+":
                return self.left + self.right
            case "-":
                return self.left - self.right
            case "*":
                return self.left * self.right
            case _:
                return self.left // self.right

    def __str__(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}"


@dataclass(frozen=True)
class Ledger:
    now: int = 0
    start: int = 0
    friend: int = 0

    def after(self, steps: tuple[Step, ...]) -> Ledger:
        return replace(self, now=steps[-1].result) if steps else self


@dataclass(frozen=True)
class Move:
    numbers: tuple[int, ...]
    steps: tuple[Step, ...]


Part = Callable[[Random, Ledger], Move | None]


def _single(sign: str, left: int, right: int) -> Move:
    return Move((right,), (Step(left, sign, right),))


def gain(random: Random, ledger: Ledger) -> Move | None:
    most = min(_ADDED, LARGEST - ledger.now)
    return _single("+", ledger.now, between(random, 2, most)) if most >= 2 else None


def lose(random: Random, ledger: Ledger) -> Move | None:
    most = min(99, ledger.now - 1)
    return _single("-", ledger.now, between(random, 2, most)) if most >= 2 else None


def multiply(random: Random, ledger: Ledger) -> Move | None:
    most = min(9, LARGEST // ledger.now)
    return _single("*", ledger.now, between(random, 2, most)) if most >= 2 else None


def divide(random: Random, ledger: Ledger) -> Move | None:
    fitting = [k for k in range(2, 10) if ledger.now % k == 0 and ledger.now > k]
    return _single("/", ledger.now, one_of(random, fitting)) if fitting else None


def _groups(random: Random, ledger: Ledger, sign: str) -> Move | None:
    groups, each = between(random, 2, _GROUPS), between(random, 2, _IN_GROUP)
    steps = (Step(groups, "*", each), Step(ledger.now, sign, groups * each))
    return Move((groups, each), steps) if 0 < steps[1].result <= LARGEST else None


def gain_groups(random: Random, ledger: Ledger) -> Move | None:
    return _groups(random, ledger, "+")


def lose_groups(random: Random, ledger: Ledger) -> Move | None:
    return _groups(random, ledger, "-")


def missing(random: Random, ledger: Ledger) -> Move | None:
    low, high = ledger.now + 2, min(LARGEST, ledger.now + 99)
    if low > high:
        return None
    goal = between(random, low, high)
    return Move((goal,), (Step(goal, "-", ledger.now),))


def now(random: Random, ledger: Ledger) -> Move | None:
    return Move((), ())


def _difference(larger: int, smaller: int) -> Move | None:
    return Move((), (Step(larger, "-", smaller),)) if larger > smaller else None


def risen(random: Random, ledger: Ledger) -> Move | None:
    return _difference(ledger.now, ledger.start)


def fallen(random: Random, ledger: Ledger) -> Move | None:
    return _difference(ledger.start, ledger.now)


def ahead_of_friend(random: Random, ledger: Ledger) -> Move | None:
    return _difference(ledger.now, ledger.friend)


def with_friend(random: Random, ledger: Ledger) -> Move | None:
    fits = ledger.now + ledger.friend <= LARGEST
    return Move((), (Step(ledger.now, "+", ledger.friend),)) if fits else None


EVENT_PARTS: dict[str, Part] = {
    "gain": gain,
    "lose": lose,
    "multiply": multiply,
    "divide": divide,
    "gain_groups": gain_groups,
    "lose_groups": lose_groups,
}
QUESTION_PARTS: dict[str, Part] = {
    "now": now,
    "price": multiply,
    "missing": missing,
    "with_another": gain,
    "risen": risen,
    "fallen": fallen,
    "with_friend": with_friend,
    "ahead_of_friend": ahead_of_friend,
}


def opening(kind: str, random: Random) -> tuple[Move, Ledger]:
    """Draw the first numbers; remember a friend's number if the opening names a friend."""
    if kind == "has":
        first = between(random, 5, 99)
        return Move((first,), ()), Ledger(first, first)
    if kind == "boxes":
        groups, each = between(random, 2, _GROUPS), between(random, 2, _IN_GROUP)
        return _opened(Step(groups, "*", each))
    first = between(random, 4, 99)
    if kind == "two_sorts":
        return _opened(Step(first, "+", between(random, 2, _ADDED)))
    part = {"more": gain, "fewer": lose, "times": multiply}[kind.split("_")[0]]
    move = part(random, Ledger(first))
    assert move is not None  # 4 to 99 leave room for each of them
    return _opened(move.steps[0], friend=first)


def _opened(step: Step, friend: int = 0) -> tuple[Move, Ledger]:
    move = Move((step.left, step.right), (step,))
    return move, Ledger(step.result, step.result, friend)
