"""Scripted answers: an executor whose tokens, and failures, a scenario prescribes."""

from collections.abc import Sequence

import msgspec

from pagetwin.conformance.scenario import ScriptedOutput
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.step import StepPlan, StepResult
from pagetwin.simulator.token_source import ScriptedTokens

FAILS = -1


class ScriptedAnswers:
    """Gives each sequence its tokens of `outputs`; it computes and remembers no K/V."""

    def __init__(self, outputs: Sequence[ScriptedOutput], *, max_model_len: int) -> None:
        self._outputs = {one.seq_id: one for one in outputs}
        self._tokens = ScriptedTokens(self._token, max_model_len=max_model_len)

    def execute(self, plan: StepPlan) -> StepResult:
        result = self._tokens.execute(plan)
        failed = {
            seq_id: f"made to fail in step {plan.step}"
            for seq_id, token in result.sampled.items()
            if token == FAILS
        }
        sampled = {key: token for key, token in result.sampled.items() if key not in failed}
        return msgspec.structs.replace(result, sampled=sampled, failed=failed)

    def _token(self, request: Request, sample_index: int, position: int) -> int:
        output = self._outputs.get(sequence_id(request.request_id, sample_index))
        if output is None:
            return 0
        if position < len(output.token_ids):
            return output.token_ids[position]
        return FAILS if output.then_fails else 0
