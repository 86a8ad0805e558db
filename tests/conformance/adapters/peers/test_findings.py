"""What was found in other engines replays from its file, there, and is not so in ours."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.adapters.vllm import make
from pagetwin.conformance.experiments.scenarios import NO_CRASH, play_and_judge
from pagetwin.conformance.scenario import Scenario, load_scenario
from pagetwin.reports.peers import BASELINES

FOUND_IN = "0.32.0"
SEED_IN_CHUNKS = BASELINES / "verification" / f"vllm-{FOUND_IN}-cpu.seed-in-chunks.json"


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario(SEED_IN_CHUNKS)


@pytest.fixture(scope="module")
def vllm(checkpoint: Path, vllm_python: str) -> Iterator[Adapter]:
    adapter = make(str(checkpoint), {"python": vllm_python})
    yield adapter
    adapter.close()


@pytest.mark.peer
@pytest.mark.slow
def test_vllm_on_a_cpu_ends_at_a_seed_in_a_prompt_of_two_steps(
    vllm: Adapter, scenario: Scenario
) -> None:
    if vllm.describe().version != FOUND_IN:
        pytest.skip(f"found in vLLM {FOUND_IN}, this is {vllm.describe().version}")
    broken = {one.property_id for one in play_and_judge(scenario, vllm).violations}
    assert broken == {NO_CRASH}


def test_our_engine_goes_on(scenario: Scenario) -> None:
    adapter = make_adapter("pagetwin:random")
    played = play_and_judge(scenario, adapter)
    adapter.close()
    assert not played.violations
    assert len(played.records) > 10
