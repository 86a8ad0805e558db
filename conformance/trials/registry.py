"""Trials: one example run on the engine as it is, and every property that it breaks.

A trial knows which parts of the engine it exercises, and nothing of mutants: a mutant is tried by
every trial that exercises what it changes. Example `index` of stream `seed` is always the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pagetwin.conformance.properties import Violation


@dataclass(frozen=True)
class Trial:
    """A source of examples, and how they are judged."""

    name: str
    exercises: tuple[str, ...]
    """Beginnings of module names."""
    run: Callable[[int, int], list[Violation]]
    """From (seed, index) to what the example breaks, the gravest first."""


def trials_of(modules: tuple[str, ...], named: tuple[str, ...] = ()) -> list[Trial]:
    """The trials that exercise one of the modules, or are named, in their order."""
    return [
        trial
        for trial in TRIALS
        if trial.name in named or any(module.startswith(trial.exercises) for module in modules)
    ]


def _scheduling(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.examples import random_scenario
    from pagetwin.conformance.trials.scheduling import judge_engine

    return judge_engine(random_scenario(seed, index))


def _reused_ids(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.variations import judge_reused_ids

    return judge_reused_ids(seed, index)


def _pictures(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.variations import judge_pictures

    return judge_pictures(seed, index)


def _crowded_searches(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.variations import judge_crowded_searches

    return judge_crowded_searches(seed, index)


def _lookahead(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.variations import judge_lookahead

    return judge_lookahead(seed, index)


def _batch(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.batch import judge_batch
    from pagetwin.conformance.trials.examples import random_scenario

    return judge_batch(random_scenario(seed, index))


def _sampling(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.sampling import judge_sampler

    return judge_sampler(seed, index)


def _rich_sampling(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.sampling import judge_rich_sampler

    return judge_rich_sampler(seed, index)


def _attention(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.attention import judge_attention

    return judge_attention(seed, index)


def _work_lists(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.work_lists import judge_work_lists

    return judge_work_lists(seed, index)


def _memory(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.memory import judge_memory

    return judge_memory(seed, index)


def _text(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.text import judge_text

    return judge_text(seed, index)


def _reports(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.reports import judge_reports

    return judge_reports(seed, index)


def _fallback_text(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.text import judge_fallback_text

    return judge_fallback_text(seed, index)


def _search(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.search import judge_search

    return judge_search(seed, index)


def _faults(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.faults import judge_faults

    return judge_faults(seed, index)


def _answers(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.answers import judge_answers

    return judge_answers(seed, index)


def _kv(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.kv import judge_kv

    return judge_kv(seed, index)


def _families(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.families import judge_families

    return judge_families(seed, index)


def _transformers(seed: int, index: int) -> list[Violation]:
    from pagetwin.conformance.trials.foreign import judge_transformers

    return judge_transformers(seed, index)


# What needs torch is imported when it is first tried.
TRIALS = (
    Trial(
        "scheduling",
        (
            "pagetwin.engine.admission",
            "pagetwin.engine.awaited_blocks",
            "pagetwin.engine.block_",
            "pagetwin.engine.closing",
            "pagetwin.engine.fingerprint",
            "pagetwin.engine.free_queue",
            "pagetwin.engine.plan_draft",
            "pagetwin.engine.planning",
            "pagetwin.engine.policies",
            "pagetwin.engine.prefix_keys",
            "pagetwin.engine.queues",
            "pagetwin.engine.scheduler",
            "pagetwin.engine.sequence",
            "pagetwin.engine.stopping",
            "pagetwin.simulator",
        ),
        _scheduling,
    ),
    Trial(
        "reused ids",
        ("pagetwin.engine.queues", "pagetwin.engine.scheduler_state"),
        _reused_ids,
    ),
    Trial("pictures", ("pagetwin.engine.prefix_keys",), _pictures),
    Trial(
        "crowded searches",
        ("pagetwin.engine.planning", "pagetwin.engine.queues", "pagetwin.engine.closing"),
        _crowded_searches,
    ),
    Trial("lookahead", ("pagetwin.engine.planning",), _lookahead),
    Trial(
        "text",
        (
            "pagetwin.engine.detokenizer",
            "pagetwin.engine.live_request",
            "pagetwin.engine.output_processor",
        ),
        _text,
    ),
    Trial("fallback text", ("pagetwin.engine.detokenizer",), _fallback_text),
    Trial(
        "batch",
        (
            "pagetwin.engine.device_tables",
            "pagetwin.engine.draws",
            "pagetwin.engine.input_batch",
            "pagetwin.engine.step_inputs",
        ),
        _batch,
    ),
    Trial(
        "sampling",
        (
            "pagetwin.engine.logits",
            "pagetwin.engine.logprobs",
            "pagetwin.engine.noise",
            "pagetwin.engine.sampler",
            "pagetwin.engine.token_order",
        ),
        _sampling,
    ),
    Trial(
        "rich sampling",
        (
            "pagetwin.engine.logits",
            "pagetwin.engine.logprobs",
            "pagetwin.engine.noise",
            "pagetwin.engine.sampler",
            "pagetwin.engine.token_order",
        ),
        _rich_sampling,
    ),
    Trial("memory", ("pagetwin.engine.kv_", "pagetwin.kernels.reference"), _memory),
    Trial("attention", ("pagetwin.engine.attention",), _attention),
    Trial(
        "work lists",
        ("pagetwin.engine.attention.decode_plan", "pagetwin.engine.attention.prefill_plan"),
        _work_lists,
    ),
    Trial(
        "search",
        (
            "pagetwin.engine.beam_search",
            "pagetwin.engine.live_request",
            "pagetwin.engine.output_processor",
        ),
        _search,
    ),
    Trial(
        "reports",
        (
            "pagetwin.engine.live_request",
            "pagetwin.engine.llm_engine",
            "pagetwin.engine.output_processor",
        ),
        _reports,
    ),
    Trial("faults", ("pagetwin.engine.core",), _faults),
    # Where answers end: asked of the engine as a whole, for mutants that name it.
    Trial("answers", (), _answers),
    # A model's KV memory in a whole run, likewise.
    Trial("kv", (), _kv),
    # Seconds for ten: for mutants of models alone.
    Trial(
        "families",
        (
            "pagetwin.engine.factory",
            "pagetwin.engine.layers",
            "pagetwin.engine.models",
            "pagetwin.engine.weights",
        ),
        _families,
    ),
    Trial("transformers", ("transformers.generation.continuous_batching",), _transformers),
)


def find_trial(name: str) -> Trial:
    [trial] = [one for one in TRIALS if one.name == name]
    return trial
