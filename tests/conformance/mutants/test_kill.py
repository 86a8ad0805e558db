"""The kill run: planted bugs are seen, and the clean engine is not accused."""

from itertools import count

import pytest

from pagetwin.conformance.mutants.catalogue import MUTANTS
from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.kill import run_kills
from pagetwin.conformance.mutants.mutant import Mutant
from pagetwin.conformance.mutants.transformers_batching import TRANSFORMERS_BATCHING
from pagetwin.conformance.trials.registry import TRIALS, trials_of
from pagetwin.reports.mutants_page import render_mutants_page, verdict

BY_ID = {mutant.id: mutant for mutant in MUTANTS}
QUICK = (
    "alloc.block-late",
    "alloc.preempt-leaks",
    "cow.no-copy",
    "exec.copies-late",
    "cache.stale-hash",
    "preempt.swap-loses-tail",
    "force.keeps-its-blocks",
    "sched.budget-plus-one",
    "wait.never",
    "life.min-tokens-late",
    "batch.vacated-row-keeps-tokens",
    "attn.bidirectional",
    "memory.padding-wraps",
    "samp.top-k-one-more",
    "text.nothing-held-back",
    "fault.failed-step-counts",
    "twin.ends-one-token-late",
    "told.salt-dropped",
    "search.ties-by-token",
    "model.keys-and-values-exchanged",
    "device.split-one-key-short",
    "blind.named-tokens-dropped",
)


def harmless(target: str, old: str) -> Mutant:
    """An edit that changes nothing."""
    return Mutant(
        id="none.harmless",
        bug="",
        statement="Nothing is wrong.",
        expects="twin.lockstep",
        trigger="none",
        edits=(Edit(target, old, f"{old}\n    pass"),),
    )


@pytest.mark.parametrize("mutant_id", QUICK)
def test_one_seed_kills(mutant_id: str) -> None:
    mutant = BY_ID[mutant_id]
    matrix = run_kills([mutant], num_seeds=1, budget_s=20.0, control_examples=2)
    [row] = matrix.mutants
    assert row.killed, row
    assert not matrix.false_alarms


def test_every_family_has_a_quick_one() -> None:
    families = {mutant.family for mutant in MUTANTS if mutant not in TRANSFORMERS_BATCHING}
    assert {BY_ID[one].family for one in QUICK} == families


@pytest.mark.skipif(not TRANSFORMERS_BATCHING, reason="its edits fit another transformers")
def test_bugs_planted_in_transformers_are_seen_through_its_adapter() -> None:
    mutants = [BY_ID["hfcb.positions-without-hit"], BY_ID["hfcb.one-token-early"]]
    matrix = run_kills(mutants, num_seeds=1, budget_s=20.0, control_examples=1)
    assert not matrix.survivors
    assert not matrix.false_alarms
    assert [one.killed_by for one in matrix.mutants] == ["mem.provenance", "life.length"]


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_the_clean_engine_is_not_accused(trial: object) -> None:
    [same] = [one for one in TRIALS if one is trial]
    for index in range(2 if same.name == "transformers" else 30):
        assert not same.run(1000, index)


def test_every_mutant_is_tried() -> None:
    untried = [mutant.id for mutant in MUTANTS if not trials_of(mutant.modules, mutant.also_tried)]
    assert not untried


def test_equal_seeds_give_equal_kills() -> None:
    mutant = BY_ID["cache.last-block-never-hits"]
    runs = [
        run_kills([mutant], num_seeds=2, budget_s=60.0, control_examples=0, clock=float)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert runs[0].mutants[0].seeds_killed == 2


def test_a_harmless_edit_survives_and_is_named_first() -> None:
    ticks = count()
    matrix = run_kills(
        [
            harmless(
                "pagetwin.engine.block_pool:BlockPool.is_free",
                "return self.ref_counts[block_id] == 0",
            ),
            BY_ID["cow.no-copy"],
        ],
        num_seeds=1,
        budget_s=60.0,
        control_examples=0,
        clock=lambda: float(next(ticks)),
    )
    assert [one.id for one in matrix.survivors] == ["none.harmless"]
    assert "survivors: none.harmless" in verdict(matrix)
    page = render_mutants_page(matrix)
    assert page.index("none.harmless") < page.index("cow.no-copy")
