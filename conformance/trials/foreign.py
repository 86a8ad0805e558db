"""transformers' continuous batching on provenance checkpoints, through its adapter."""

from functools import lru_cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from pagetwin.conformance.adapters.protocol import Adapter, AdapterError
from pagetwin.conformance.experiments.tight_pool import open_tight, tight_pool
from pagetwin.conformance.observation import Finished, output_tokens
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.provenance.judge import judge, violations
from pagetwin.conformance.provenance.labels import Labels
from pagetwin.conformance.provenance.variants import VARIANTS
from pagetwin.conformance.provenance.workload import WorkloadShape, draw_rounds

NAMES = ("plain", "previous", "two_layers", "grouped")
SPAN = 120
NUM_FAMILIES = 3
MAX_OUTPUT_TOKENS = 20
TIMEOUT_S = 120.0


def judge_transformers(seed: int, index: int) -> list[Violation]:
    """Two rounds of requests with common beginnings, in a pool too small for them: each token
    names the KV slot that was read, and each output has the length that was asked for."""
    random = Random(f"transformers {seed} {index}")
    name = NAMES[index % len(NAMES)]
    recipe = VARIANTS[name]
    adapter, folder = _adapter(name)
    span = max(SPAN, recipe.min_prompt_tokens + SPAN // 3)
    labels = Labels(vocab_size=recipe.vocab_size, span=span)
    block_size = random.choice((4, 8))
    shape = WorkloadShape(
        num_rounds=2,
        requests_per_round=min(6, (labels.num_owners - NUM_FAMILIES) // 2),
        num_families=NUM_FAMILIES,
        block_size=block_size,
        max_output_tokens=MAX_OUTPUT_TOKENS,
    )
    knobs = tight_pool(random, longest=span + MAX_OUTPUT_TOKENS, block_size=block_size)
    lengths: dict[str, int] = {}
    session = open_tight(adapter, folder, knobs)
    try:
        for requests in draw_rounds(
            random, labels, shape, min_prompt_tokens=recipe.min_prompt_tokens
        ):
            for request in requests:
                session.submit(request)
                lengths[request.request_id] = request.sampling_params.max_tokens or 0
            session.run(TIMEOUT_S)
        observed = session.observations()
    except AdapterError as error:
        return [violation("life.ends", -1, f"the engine does not come to an end: {error}")]
    except Exception as error:  # whatever it is: the requests are valid ones
        text = f"the engine raised {type(error).__name__}: {error}"
        return [violation("life.no-crash", -1, text)]
    finally:
        session.close()
    found = violations(judge(observed, offset=recipe.offset), labels, observed)
    outputs = output_tokens(observed)
    by_length = {one.request_id for one in observed if isinstance(one, Finished)}
    found += [
        violation(
            "life.length",
            -1,
            "an output has not the length that was asked for",
            request=request_id,
            due=due,
            tokens=len(outputs.get(request_id, {}).get(0, ())),
        )
        for request_id, due in lengths.items()
        if request_id in by_length and len(outputs.get(request_id, {}).get(0, ())) != due
    ]
    return found


@lru_cache
def _adapter(name: str) -> tuple[Adapter, str]:
    """The engine on one checkpoint, both kept for the run."""
    from pagetwin.conformance.adapters.transformers_batching import make
    from pagetwin.conformance.provenance.checkpoint import write_checkpoint

    folder = str(write_checkpoint(VARIANTS[name], Path(_folder().name) / name))
    return make(folder, {}), folder


@lru_cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="pagetwin-provenance-")
