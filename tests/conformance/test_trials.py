"""Trials of what clients hear: nothing is found on the engine as it is, and a lot happens there."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pytest
from transformers import PreTrainedModel

from pagetwin.conformance.checkers.all import check_all
from pagetwin.conformance.properties import Violation
from pagetwin.conformance.trials import (
    families,
    reports,
    scheduling,
    search,
    text,
    variations,
    work_lists,
)
from pagetwin.conformance.trials.batch import judge_batch
from pagetwin.conformance.trials.examples import random_scenario
from pagetwin.conformance.trials.sampling import judge_rich_sampler
from pagetwin.conformance.trials.search import Scored, search_alone
from pagetwin.engine.attention.decode_plan import plan_decode
from pagetwin.engine.device_tables import DeviceTables
from pagetwin.engine.planning import Planner
from pagetwin.engine.request import Request
from pagetwin.engine.sampler import Sampler
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.trace import PlanRecord, Record, RefuseRecord, ResultRecord, SubmitRecord

EXAMPLES = 60


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what the engine does meanwhile."""
    counts: Counter[str] = Counter()
    preempt = Planner._preempt

    def counted(self: Planner, victim: Any, draft: Any) -> None:
        counts["beams" if victim.is_beam else "samples"] += 1
        preempt(self, victim, draft)

    monkeypatch.setattr(Planner, "_preempt", counted)
    return counts


def test_searches_are_those_of_the_definition(
    happened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = search.search_alone

    def counted(*arguments: Any) -> Any:
        best = alone(*arguments)
        happened.update(one.reason for one in best)
        happened["ties"] += len({one.score for one in best}) < len(best)
        return best

    monkeypatch.setattr(search, "search_alone", counted)
    assert not [one for index in range(EXAMPLES) for one in search.judge_search(7, index)]
    assert min(happened[what] for what in ("beams", "stop", "length", "ties")) > 2, happened


def test_clients_hear_what_is_true_when_it_is_due(
    happened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = reports._Run._judge

    def counted(self: Any, client: Any, output: Any) -> None:
        judge(self, client, output)
        happened["pieces"] += not output.finished
        happened["ranked"] += client.is_ranked
        happened["prompts"] += output.prompt_logprobs is not None
        happened["cached"] += output.num_cached_tokens > 0
        happened["aborted"] += any(one.finish_reason == "abort" for one in output.outputs)

    monkeypatch.setattr(reports._Run, "_judge", counted)
    assert not [one for index in range(EXAMPLES) for one in reports.judge_reports(7, index)]
    told = ("pieces", "ranked", "prompts", "cached", "aborted", "samples")
    assert min(happened[what] for what in told) > 2, happened


def test_devices_are_sent_what_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = Counter[str]()
    apply = DeviceTables.apply

    def counted(self: DeviceTables, views: Any) -> None:
        sent.update(views.keys())
        apply(self, views)

    monkeypatch.setattr(DeviceTables, "apply", counted)
    assert not [one for index in range(EXAMPLES) for one in judge_batch(random_scenario(7, index))]
    assert min(sent["block_places"], sent["token_places"]) > EXAMPLES


def test_work_lists_read_each_key_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Counter[int]()

    def counted(*arrays: Any, **sizes: Any) -> Any:
        plan = plan_decode(*arrays, **sizes)
        shared.update(plan.items[:, 3].tolist())
        return plan

    monkeypatch.setattr(work_lists, "plan_decode", counted)
    examples = range(4 * EXAMPLES)
    assert not [one for index in examples for one in work_lists.judge_work_lists(7, index)]
    assert min(shared[count] for count in (1, 2, 3, 4)) > 2, shared


@pytest.mark.parametrize(
    ("judge", "needed"),
    [
        (variations.judge_reused_ids, {"in use", "lives again"}),
        (variations.judge_pictures, {"hits behind two pictures"}),
        (variations.judge_crowded_searches, {"beams give way", "errors"}),
        (variations.judge_lookahead, {"forks planned ahead"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_richer_scenarios_are_clean_too(
    judge: Callable[[int, int], list[Violation]], needed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = Counter[str]()

    def counted(records: Sequence[Record]) -> Iterator[Violation]:
        happened.update(_what_happens(records))
        return iter(check_all(records))

    monkeypatch.setattr(scheduling, "check_all", counted)
    assert not [one for index in range(EXAMPLES) for one in judge(7, index)]
    assert min(happened[what] for what in needed) > 2, happened


def _what_happens(records: Sequence[Record]) -> Iterator[str]:
    """What the variations are about."""
    requests: dict[str, Request] = {}
    for record in records:
        if isinstance(record, RefuseRecord) and "in use" in record.error:
            yield "in use"
        elif isinstance(record, SubmitRecord):
            if record.request.request_id in requests:
                yield "lives again"
            requests[record.request.request_id] = record.request
        elif isinstance(record, PlanRecord):
            for one in record.plan.introduced:
                media = requests[one.request_id].media
                if len(media) > 1 and one.num_cached_tokens > media[1].offset:
                    yield "hits behind two pictures"
            names = [one.seq_id.rpartition("/")[0] for one in record.plan.preempted]
            yield from ("beams give way" for name in names if requests[name].beam_search)
        elif isinstance(record, ResultRecord):
            yield from ("errors" for one in record.finished if one.reason == "error")
            yield from ("forks planned ahead" for _ in record.forked)


def test_rows_that_ask_for_everything_are_sampled_right(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Counter[str]()
    sample = Sampler.sample

    def counted(self: Sampler, logits: Any, rows: Any) -> Any:
        for row in rows:
            params = row.request.sampling_params
            asked["forced"] += len(params.trace_decode_token_ids) > len(row.output_token_ids)
            asked["named"] += params.logprob_token_ids is not None
            asked["cut twice"] += params.top_k > 0 and params.top_p < 1.0
            asked["bad words"] += len(row.request.bad_words_token_ids) > 1
        return sample(self, logits, rows)

    monkeypatch.setattr(Sampler, "sample", counted)
    assert not [one for index in range(EXAMPLES) for one in judge_rich_sampler(7, index)]
    assert min(asked[what] for what in ("forced", "named", "cut twice", "bad words")) > 20, asked


def test_members_of_families_answer_as_transformers_says(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Counter[str]()
    random_model = families.random_model

    def counted(random: Random) -> PreTrainedModel:
        model = random_model(random)
        drawn.update([model.config.model_type, str(model.config.rope_parameters["rope_type"])])
        return model

    monkeypatch.setattr(families, "random_model", counted)
    assert not [one for index in range(EXAMPLES) for one in families.judge_families(7, index)]
    kinds = ("llama", "mistral", "qwen2", "qwen3", "default", "linear", "llama3", "yarn")
    assert min(drawn[kind] for kind in kinds) > 2, drawn


def test_bytes_are_shown_when_their_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Counter[str]()
    expected = text._expected

    def counted(*arguments: Any) -> Any:
        due = expected(*arguments)
        shown.update(due.text)
        return due

    monkeypatch.setattr(text, "_expected", counted)
    assert not [one for index in range(EXAMPLES) for one in text.judge_fallback_text(7, index)]
    assert min(shown["é"], shown["\ufffd"]) > 5, shown


def test_a_search_as_wide_as_the_tree_finds_the_best_sequence() -> None:
    """Against all sequences: a beam for every prefix leaves nothing out."""

    def candidates(tokens: tuple[int, ...]) -> list[tuple[int, float]]:
        return [(token, -((sum(tokens) * 7 + token * 5) % 11) / 4 - 0.25) for token in range(3)]

    request = Request(
        request_id="r",
        prompt_token_ids=(1,),
        sampling_params=SamplingParams(max_tokens=3),
        beam_search=BeamSearchParams(beam_width=27, length_penalty=0.0, early_stopping="never"),
    )
    totals = []
    for tokens in itertools.product(range(3), repeat=3):
        prefixes = (tokens[:length] for length in range(3))
        steps = zip(prefixes, tokens, strict=True)
        totals.append((-sum(dict(candidates(before))[token] for before, token in steps), tokens))
    cost, best = min(totals)
    [first, *_] = search_alone(request, candidates)
    assert first == Scored(best, -cost, -cost, "length")
