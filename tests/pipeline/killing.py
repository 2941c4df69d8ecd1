"""Work that is killed at random moments and run again, and what is counted and compared.

Children are forked from a process that has run none of the work, so that no threads are lost.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Work = Callable[[Path], object]
"""Does a stage's work, all that it keeps below the directory that it is given."""


@dataclass(frozen=True)
class Stage:
    """ready(root): the work, once what it starts from is loaded. before: makes, once, what the
    directory holds at first. units: functions by (owner, name), a call is a unit of work.
    outputs: below the directory, complete or absent at every moment."""

    ready: Callable[[Path], Work]
    before: Callable[[Path, Path], object] | None = None
    units: tuple[tuple[Any, str], ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass
class Trial:
    """One directory that the work goes on in until it is done."""

    stage: Stage
    root: Path
    place: Path
    kills: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        begun = self.root / "before"
        if begun.exists():
            shutil.copytree(begun, self.place)
        else:
            self.place.mkdir()

    @property
    def log(self) -> Path:
        return self.place.with_suffix(".log")

    @property
    def started(self) -> int:
        """Units of work."""
        return self.log.stat().st_size if self.log.exists() else 0

    def run(self, killed_after: float = float("inf")) -> bool:
        """True when it ended before it was killed."""
        done, self.seconds = in_child(self._work, killed_after)
        self.kills += not done
        return done

    def run_whole(self) -> float:
        """Seconds that it took from where it stood."""
        assert self.run()
        return self.seconds

    def _work(self, started: Callable[[], None]) -> None:
        work = self.stage.ready(self.root)
        with counted(self.stage.units, self.log):
            started()
            work(self.place)


def killed(stage: Stage, root: Path, kills: int) -> tuple[int, int]:
    """Return the units of work done undisturbed, and the most in a trial beyond its kills.

    Raises AssertionError unless everything ends as it does undisturbed.
    """
    torch.set_num_threads(1)
    root.mkdir()
    if (before := stage.before) is not None:
        (root / "before").mkdir()
        assert in_child(lambda _: before(root, root / "before"), float("inf"))[0]
    calm = Trial(stage, root, root / "calm")
    whole = calm.run_whole()
    source, done, trials, most = random.Random(0), 0, 0, 0
    while done < kills:
        trials += 1
        trial = Trial(stage, root, root / f"trial{trials}")
        while done < kills and not trial.run(source.uniform(0.02, 0.9) * whole):
            done += 1
            _check_outputs(trial, calm)
        if done == kills:
            trial.run_whole()
        _check(trial, calm)
        most = max(most, trial.started - trial.kills)
    return calm.started, most


def _check_outputs(trial: Trial, calm: Trial) -> None:
    for name in trial.stage.outputs:
        if (trial.place / name).exists():
            assert same(contents(trial.place / name), contents(calm.place / name))


def _check(trial: Trial, calm: Trial) -> None:
    assert same(contents(trial.place), contents(calm.place))
    odd = set(names(trial.place)) ^ set(names(calm.place))
    assert not odd, f"left behind or missing: {odd}"
    assert calm.started <= trial.started


def in_child(
    work: Callable[[Callable[[], None]], object], killed_after: float
) -> tuple[bool, float]:
    """Run `work` in a copy of this process, killed so long after it says that it is ready;
    True when it ended before, and the seconds since then."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _as_child(work, writing)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    begun = time.monotonic()
    while time.monotonic() < begun + killed_after:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "it failed by itself"
            return True, time.monotonic() - begun
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False, killed_after


def _as_child(work: Callable[[Callable[[], None]], object], ready: int) -> None:
    try:
        work(lambda: os.close(ready))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


@contextmanager
def counted(units: tuple[tuple[Any, str], ...], log: Path) -> Iterator[None]:
    """Every call of one of them is a byte in `log`, which outlives the process."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:
            os.write(file, b".")
            return function(*arguments, **options)

        return noted

    for owner, name in units:
        setattr(owner, name, noting(getattr(owner, name)))
    yield


def contents(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors below a directory, by file and name."""
    found = {}
    for path in sorted(directory.rglob("*.safetensors")):
        found |= {f"{path.name}|{name}": t for name, t in load_file(path).items()}
    return found


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return set(found) == set(expected) and all(
        torch.equal(found[name], expected[name]) for name in expected
    )
