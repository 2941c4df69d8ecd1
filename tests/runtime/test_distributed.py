"""Who does what, and how results and errors of several processes come together."""

from __future__ import annotations

import warnings

import pytest
import torch

from spectrim.errors import InputError, NumericalWarning, UnknownNameError
from spectrim.runtime import distributed
from tests.forks import in_processes, needs_fork

pytestmark = pytest.mark.slow


def test_alone_everything_is_ones_own():
    assert (
        distributed.num_processes(),
        distributed.process_index(),
        distributed.is_main_process(),
    ) == (
        1,
        0,
        True,
    )
    assert list(distributed.shard("abc")) == list("abc")
    assert distributed.run_on_main(lambda: 3) == 3
    tensor = torch.ones(2)
    distributed.all_reduce_sum_([tensor])
    assert tensor.tolist() == [1, 1]


def test_packed_by_cost():
    owners = distributed.balanced_bins([1, 5, 2, 3, 3], 2)
    loads = [
        sum(c for c, o in zip([1, 5, 2, 3, 3], owners, strict=True) if o == b) for b in (0, 1)
    ]
    assert sorted(loads) == [7, 7]
    assert distributed.balanced_bins([4.0], 3) == [0]


@needs_fork
def test_three_processes(tmp_path):
    large = 2**17 + 3

    def work():
        me = distributed.process_index()
        sums = [torch.full((2, 3), me + 1.0).T, torch.tensor(me), torch.full((large,), 0.5)]
        distributed.all_reduce_sum_(sums)
        return {
            "own": list(distributed.shard("abcdefg")),
            "sums": [sums[0][0, 0].item(), sums[1].item(), sums[2].sum().item()],
            "tensors": distributed.gather_tensors({f"of {me}": torch.full((me,), float(me)).T}),
            "merged": distributed.gather_dict({me: "x" * me}),
            "first": distributed.run_on_main(lambda: (me, distributed.num_processes())),
            "agreed": (distributed.all_true(True), distributed.all_true(me != 1)),
        }

    found = in_processes(tmp_path / "three", work, 3)
    assert [each.pop("own") for each in found] == [list("adg"), list("be"), list("cf")]
    for each in found:
        assert each["sums"] == [6, 3, 1.5 * large]
        assert {n: t.tolist() for n, t in each["tensors"].items()} == {
            "of 0": [],
            "of 1": [1],
            "of 2": [2, 2],
        }
        assert each["merged"] == {0: "", 1: "x", 2: "xx"}
        assert each["first"] == (0, 1)
        assert each["agreed"] == (True, False)


@needs_fork
def test_errors_and_warnings_of_one_are_those_of_all(tmp_path):
    def work():
        told = []
        with warnings.catch_warnings(record=True) as given:
            with distributed.raise_together():
                if distributed.process_index() == 1:
                    warnings.warn("damped", NumericalWarning, stacklevel=1)
            for raised in (InputError("no space"), UnknownNameError("method", "x", "ab")):
                try:
                    with distributed.raise_together():
                        if distributed.process_index() == 1:
                            raise raised
                except InputError as error:
                    told.append((type(error), str(error)))
        return told, [(str(each.message), each.category) for each in given]

    first, second = in_processes(tmp_path / "two", work)
    assert first == second
    assert first[1] == [("damped", NumericalWarning)]
    assert first[0][0] == (InputError, "no space")
    assert first[0][1] == (UnknownNameError, "unknown method 'x'; available: a, b")


@needs_fork
def test_an_error_of_the_first_alone_is_raised_in_all(tmp_path):
    def fails():
        raise InputError("only the first knows")

    def work():
        with pytest.raises(InputError, match="only the first knows"):
            distributed.run_on_main(fails)
        return distributed.num_processes()

    assert in_processes(tmp_path / "two", work) == [2, 2]
