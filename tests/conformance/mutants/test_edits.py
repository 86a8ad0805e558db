"""An edit takes hold while its block lasts, and an edit that does not fit is an error."""

import inspect
from functools import lru_cache

import pytest

from pagetwin.conformance.mutants.catalogue import MUTANTS
from pagetwin.conformance.mutants.edits import Edit, EditError, applied
from pagetwin.conformance.mutants.mutant import Mutant
from pagetwin.conformance.properties import CATALOGUE
from pagetwin.engine.block_pool import BlockPool

HERE = __name__
MOST_LINES = 5
TAKE = "pagetwin.engine.block_pool:BlockPool.take"


def doubled(value: int) -> int:
    return 2 * value


@lru_cache
def remembered(value: int) -> int:
    return value + 1


class Thing:
    @property
    def size(self) -> int:
        return 1

    @staticmethod
    def plain() -> str:
        return "a"

    @classmethod
    def of_class(cls) -> str:
        return cls.__name__


@pytest.mark.parametrize(
    ("target", "old", "new", "call", "before", "within"),
    [
        ("doubled", "2 * value", "3 * value", lambda: doubled(1), 2, 3),
        ("Thing.size", "return 1", "return 7", lambda: Thing().size, 1, 7),
        ("Thing.plain", '"a"', '"b"', lambda: Thing.plain(), "a", "b"),
        ("Thing.of_class", "cls.__name__", '"X"', lambda: Thing.of_class(), "Thing", "X"),
        ("remembered", "value + 1", "value + 2", lambda: remembered(1), 2, 3),
    ],
)
def test_an_edit_holds_within_its_block_and_no_longer(
    target: str, old: str, new: str, call: object, before: object, within: object
) -> None:
    assert callable(call)
    assert call() == before
    with applied([Edit(f"{HERE}:{target}", old, new)]):
        assert call() == within
    assert call() == before


def test_an_edit_reaches_references_that_were_taken_before() -> None:
    reference = doubled
    with applied([Edit(f"{HERE}:doubled", "2 * value", "5 * value")]):
        assert reference(1) == 5


def test_a_block_that_raises_leaves_the_original() -> None:
    with pytest.raises(KeyError), applied([Edit(f"{HERE}:doubled", "2 *", "5 *")]):
        raise KeyError
    assert doubled(1) == 2


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit(TAKE, "no such text", "x"), "0 times"),
        (Edit(TAKE, "block_id", "x"), "times, not once"),
        (Edit(TAKE, "self._free.take()", "self._free.take()"), "not once"),
        (Edit(f"{TAKE}n", "a", "b"), "no such function"),
        (Edit("pagetwin.engine.nowhere:f", "a", "b"), "no such function"),
        (Edit("pagetwin.engine.block_pool:NULL_BLOCK", "a", "b"), "not a Python function"),
        (Edit(TAKE, "return block_id", "return ("), "not Python"),
    ],
)
def test_an_edit_that_does_not_fit_is_an_error_and_changes_nothing(
    edit: Edit, message: str
) -> None:
    code = BlockPool.take.__code__
    good = Edit("pagetwin.engine.block_pool:BlockPool.hold", "== 0", "== 1")
    with pytest.raises(EditError, match=message), applied([good, edit]):
        pass
    assert BlockPool.take.__code__ is code
    pool = BlockPool(3)
    pool.hold(1)
    assert pool.num_free == 1


def test_ids_are_unique_and_families_are_large_enough() -> None:
    ids = [mutant.id for mutant in MUTANTS]
    assert len(set(ids)) == len(ids)
    real = [mutant for mutant in MUTANTS if not mutant.equivalent]
    in_twin = [one for one in real if any("simulator" in name for name in one.modules)]
    assert len([one for one in real if one not in in_twin and one.bug]) >= 60
    assert len(in_twin) >= 8


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_every_mutant_can_be_planted_and_removed(mutant: Mutant) -> None:
    assert mutant.expects in CATALOGUE
    assert mutant.statement.endswith(".")
    assert mutant.trigger
    assert 0 < sum(edit.num_changed_lines for edit in mutant.edits) <= MOST_LINES
    before = [_code(edit.target) for edit in mutant.edits]
    with mutant.planted():
        within = [_code(edit.target) for edit in mutant.edits]
        assert all(one is not other for one, other in zip(before, within, strict=True))
    assert [_code(edit.target) for edit in mutant.edits] == before


def _code(target: str) -> object:
    from pagetwin.conformance.mutants.edits import _resolve

    function = _resolve(target)
    assert inspect.isfunction(function)
    return function.__code__
