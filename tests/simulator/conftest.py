"""A replica to step by hand, for tests that name every block."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.step import BeamSelection, StepPlan, StepResult, StepUpdate
from pagetwin.simulator.replica import Replica


class SteppedReplica(Replica):
    """A replica whose steps return `TOKEN` for each row; each call recounts its books."""

    TOKEN = 50

    def submit(
        self, name: str, prompt: int | Sequence[int], *, width: int | None = None, **fields: Any
    ) -> None:
        """A prompt of `prompt` tokens of its own, or the given ones; other fields by name."""
        if isinstance(prompt, int):
            prompt = [100 * ord(name[0]) + i for i in range(prompt)]
        own = {key: fields.pop(key) for key in list(fields) if key in Request.__struct_fields__}
        self.add_request(
            Request(
                request_id=name,
                prompt_token_ids=tuple(prompt),
                sampling_params=SamplingParams(**{"max_tokens": 20, **fields}),
                beam_search=None if width is None else BeamSearchParams(beam_width=width),
                **own,
            )
        )

    def plan_step(self) -> StepPlan:
        plan = self.schedule()
        assert plan is not None
        self.check_invariants()
        return plan

    def close(
        self,
        plan: StepPlan,
        tokens: dict[str, int] | None = None,
        *,
        failed: dict[str, str] | None = None,
        stop_strings: dict[str, str] | None = None,
        selections: Sequence[BeamSelection] = (),
    ) -> StepUpdate:
        """Gives each row that samples its token, and samples 0..2 of its request, too; not those
        that `failed` names."""
        sampled = {row.seq_id: self.TOKEN for row in plan.scheduled if row.samples}
        request_ids = [seq_id.rpartition("/")[0] for seq_id in sampled]
        sampled |= {f"{name}/{i}": self.TOKEN for name in request_ids for i in range(3)}
        sampled |= tokens or {}
        failed = failed or {}
        result = StepResult(
            step=plan.step,
            sampled={seq_id: sampled[seq_id] for seq_id in sampled if seq_id not in failed},
            failed=failed,
            stop_strings=stop_strings or {},
            selections=tuple(selections),
        )
        update = self.update(plan, result)
        self.check_invariants()
        return update

    @staticmethod
    def shares(plan: StepPlan) -> list[tuple[str, int, int]]:
        """(sequence, computed tokens, tokens of this step) of each row."""
        return [(r.seq_id, r.num_computed_tokens, r.num_scheduled_tokens) for r in plan.scheduled]

    def run_step(self, tokens: dict[str, int] | None = None) -> StepPlan:
        plan = self.plan_step()
        self.close(plan, tokens)
        return plan


MakeReplica = Callable[..., SteppedReplica]
"""Knobs of both configurations by name; block size 4, and no prefix caching unless asked for."""


@pytest.fixture
def make_replica() -> MakeReplica:
    def make(**knobs: Any) -> SteppedReplica:
        cache: dict[str, Any] = {"num_blocks": 10, "block_size": 4, "enable_prefix_caching": False}
        scheduler: dict[str, Any] = {"max_model_len": 64, "max_num_batched_tokens": 64}
        scheduler["max_num_seqs"] = 8
        for name, value in knobs.items():
            (cache if name in CacheConfig.__struct_fields__ else scheduler)[name] = value
        return SteppedReplica(CacheConfig(**cache), SchedulerConfig(**scheduler))

    return make
