"""How the demo's clients behave: they submit, listen, and hang up, at fixed steps."""

from collections import deque
from collections.abc import Callable, Sequence

from pagetwin.conformance.demo.workload import DemoRequest
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.outputs import RequestOutput


def drive(
    engine: LLMEngine, workload: Sequence[DemoRequest], on_step: Callable[[int], None]
) -> dict[str, RequestOutput]:
    """Runs the workload to its end; returns each request's last output, by id.

    Steps, not seconds, say when a request arrives, so that every machine runs the same.
    `on_step` is told after each step how many requests have ended.
    """
    pending = deque(sorted(workload, key=lambda client: client.submit_step))
    hang_ups = {
        client.request.request_id: client.abort_after_tokens
        for client in workload
        if client.abort_after_tokens is not None
    }
    outputs: dict[str, RequestOutput] = {}
    now = num_ended = 0
    while pending or engine.has_unfinished_requests():
        if not engine.has_unfinished_requests():
            now = max(now, pending[0].submit_step)
        while pending and pending[0].submit_step <= now:
            request = pending.popleft().request
            engine.add_request(
                request.request_id,
                request.prompt_token_ids,
                request.sampling_params,
                arrival_s=request.arrival_s,
                priority=request.priority,
            )
            if hang_ups.get(request.request_id) == 0:
                engine.abort_request(request.request_id)
        for output in engine.step():
            outputs[output.request_id] = output
            num_ended += output.finished
            patience = hang_ups.get(output.request_id)
            if patience and len(output.outputs[0].token_ids) == patience:
                engine.abort_request(output.request_id)
        now += 1
        on_step(num_ended)
    return outputs
