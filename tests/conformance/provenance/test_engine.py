"""Our engine reads every slot right, and each way to read a wrong one is caught."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import msgspec
import pytest

from pagetwin.conformance.observation import AnyObservation, Opened, Submitted, TokenSeen
from pagetwin.conformance.provenance.judge import judge, violations
from pagetwin.conformance.provenance.labels import Labels
from pagetwin.conformance.provenance.recipe import read_recipe
from pagetwin.conformance.provenance.variants import VARIANTS
from pagetwin.conformance.provenance.workload import WorkloadShape, draw_rounds
from pagetwin.engine.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from pagetwin.engine.factory import build_runner, resolve_device
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.models.loader import load_model
from pagetwin.engine.step import Counters, Executor, IntroducedSequence, StepPlan, StepResult

if TYPE_CHECKING:
    from tests.conformance.provenance.conftest import CheckpointOf

Corrupt = Callable[[StepPlan], StepPlan]
SPAN = 150
BLOCK_SIZE = 8


class Corrupting:
    """An executor that gets wrong plans."""

    def __init__(self, executor: Executor, corrupt: Corrupt) -> None:
        self._executor = executor
        self._corrupt = corrupt

    def execute(self, plan: StepPlan) -> StepResult:
        return self._executor.execute(self._corrupt(plan))


def _run(
    folder: Path, seed: int, corrupt: Corrupt = lambda plan: plan
) -> tuple[list[AnyObservation], Labels, Counters]:
    """What a client sees of a pool that is too small, and the engine's books at the end."""
    recipe = read_recipe(folder)
    assert recipe is not None
    config = EngineConfig(
        device="cpu",
        model=ModelConfig(model=str(folder), skip_tokenizer=True),
        cache=CacheConfig(
            # A window gives blocks back, so it takes fewer for a pool to be too small.
            num_blocks=28 if recipe.sliding_window else 48,
            block_size=BLOCK_SIZE,
            sliding_window=recipe.sliding_window,
        ),
        scheduler=SchedulerConfig(max_model_len=256, max_num_seqs=8, max_num_batched_tokens=96),
    )
    assert config.model is not None
    loaded = load_model(config.model, resolve_device("cpu"))
    runner = Corrupting(build_runner(config, loaded), corrupt)
    engine = LLMEngine(config, runner, vocab_size=recipe.vocab_size)
    labels = Labels(vocab_size=recipe.vocab_size, span=SPAN)
    shape = WorkloadShape(num_rounds=3, requests_per_round=8, block_size=BLOCK_SIZE)
    observed: list[AnyObservation] = [Opened(engine="pagetwin")]
    rounds = draw_rounds(Random(seed), labels, shape, min_prompt_tokens=recipe.min_prompt_tokens)
    for requests in rounds:
        for one in requests:
            prompt = one.prompt_token_ids
            observed.append(Submitted(request_id=one.request_id, prompt_token_ids=prompt))
            engine.add_request(one.request_id, prompt, one.sampling_params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                for token in output.outputs[0].token_ids if output.finished else ():
                    observed.append(TokenSeen(request_id=output.request_id, token_id=token))
    return observed, labels, engine.core.scheduler.counters()


def test_our_engine_reads_every_slot_right(checkpoint_of: "CheckpointOf", variant: str) -> None:
    recipe = VARIANTS[variant]
    observed, labels, counters = _run(checkpoint_of(variant), seed=1)
    seen = judge(observed, offset=recipe.offset)
    assert violations(seen, labels, observed) == []
    assert seen.num_tokens > 100
    assert counters.preemptions_recompute > 0
    assert counters.prefix_hit_tokens > 0
    assert counters.evictions > 0


class WrongTables:
    """Changes introduced tables now and then: one entry becomes some block issued before."""

    def __init__(self, seed: int, *, only_hits: bool) -> None:
        self.num_changed = 0
        self._random = Random(seed)
        self._only_hits = only_hits
        self._issued: list[int] = []

    def __call__(self, plan: StepPlan) -> StepPlan:
        introduced = tuple(self._change(one) for one in plan.introduced)
        return msgspec.structs.replace(plan, introduced=introduced)

    def _change(self, one: IntroducedSequence) -> IntroducedSequence:
        table = list(one.block_ids)
        end = one.num_cached_tokens // BLOCK_SIZE if self._only_hits else len(table)
        if self._issued and end and self._random.random() < 0.4:
            table[self._random.randrange(end)] = self._random.choice(self._issued)
            self.num_changed += 1
        self._issued.extend(one.block_ids)
        return msgspec.structs.replace(one, block_ids=tuple(table))


@pytest.mark.parametrize("only_hits", [False, True], ids=["any entry", "a hit"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_foreign_block_in_a_table_is_caught(
    checkpoint_of: "CheckpointOf", seed: int, only_hits: bool
) -> None:
    # The offset reaches back over most of a prompt, so a wrong hit is read.
    corrupt = WrongTables(seed, only_hits=only_hits)
    observed, labels, _ = _run(checkpoint_of("far"), seed, corrupt)
    assert corrupt.num_changed > 0
    found = violations(judge(observed, offset=VARIANTS["far"].offset), labels, observed)
    messages = [one.message for one in found]
    assert any("read the slot of (req" in message for message in messages)
    assert all("should be (" in message for message in messages)
