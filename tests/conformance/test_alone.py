"""Each request alone: what any history of it must show, whatever happened beside it."""

from pathlib import Path

import msgspec
import pytest

from pagetwin.conformance.alone import check_alone
from pagetwin.conformance.scenario import load_scenario
from pagetwin.conformance.twins import judge_scenario
from pagetwin.engine.trace import Record, ResultRecord

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_stored_scenarios_show_each_request_as_if_alone(path: Path) -> None:
    scenario = load_scenario(path)
    assert not list(check_alone(judge_scenario(scenario).records, scenario.vocab_size))


def test_one_changed_token_is_seen_and_named() -> None:
    seen = 0
    for path in CORPUS:
        scenario = load_scenario(path)
        records = judge_scenario(scenario).records
        changed = [_changed(one) for one in records]
        if changed == records:
            continue
        found = list(check_alone(changed, scenario.vocab_size))
        names = {
            seq_id for one in records if isinstance(one, ResultRecord) for seq_id in one.sampled
        }
        beams = {
            f"{one.request.request_id}/0"
            for one in scenario.requests
            if one.request.beam_search is not None
        }
        if names - beams:
            assert found
            seen += 1
    assert seen > 3


def _changed(record: Record) -> Record:
    """Every token is another one."""
    if not isinstance(record, ResultRecord):
        return record
    sampled = {seq_id: token + 1 for seq_id, token in record.sampled.items()}
    return msgspec.structs.replace(record, sampled=sampled)
