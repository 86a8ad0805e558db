"""KV memory looked into: what nobody may read is spoilt, and what is swapped is compared."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pagetwin.conformance.adapters.protocol import (
    Adapter,
    AdapterLied,
    MemorySession,
    SteppingSession,
)
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.agreement import compare
from pagetwin.conformance.experiments.asking import NO_ANSWER
from pagetwin.conformance.experiments.questions import evidence_of
from pagetwin.conformance.faults.lab import Outcome, Watcher, run
from pagetwin.conformance.faults.settings import settings
from pagetwin.conformance.scenario import Scenario
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.step import ScheduledSequence, StepPlan
from pagetwin.engine.trace import PlanRecord

if TYPE_CHECKING:
    from torch import Tensor

STALE = "mem.no-stale-read"
SWAPPED = "swap.bytes"


class KVMemory:
    """A crowd that is short of memory, in every setting, with other tokens in each round."""

    id = "kv-memory"
    judges = (STALE, SWAPPED)
    needs = frozenset(
        {Flag.STEP_TRACE, Flag.STEP_CONTROL, Flag.RESET_CACHE, Flag.READ_KV, Flag.POISON}
    )
    weight = 0.3

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        number = 0
        while budget.allows(number):
            crowds = settings(adapter.capabilities(), seed=seed + number)
            for crowd in crowds.values():
                yield judge_stale(adapter, crowd)
            yield judge_swapped(adapter, crowds["swap"])
            number += 1


def judge_stale(adapter: Adapter, crowd: Scenario) -> Evidence:
    """The same run with NaN wherever nobody may look: equal steps have equal shapes."""
    spoiler = _Spoiler(crowd.cache.block_size)
    sound, spoilt = run(adapter, crowd), run(adapter, crowd, spoiler)
    wrong = [*spoilt.broken, *_differences(adapter, sound, spoilt)]
    return evidence_of(STALE, len(sound.answers), wrong, dict(spoiler.goals))


def _differences(adapter: Adapter, sound: Outcome, spoilt: Outcome) -> Iterator[str]:
    bits = adapter.capabilities().has(Flag.CHOSEN_LOGPROB, Flag.INVARIANT_RUN)
    for name, answer in sound.answers.items():
        difference = compare(
            answer,
            spoilt.answers.get(name, NO_ANSWER),
            dtype=adapter.describe().dtype,
            same_bits=bits,
            is_greedy=True,
        ).difference
        if difference is not None:
            yield f"{name} answers otherwise with NaN where nobody may read: {difference}"


def judge_swapped(adapter: Adapter, crowd: Scenario) -> Evidence:
    """Every block that goes to the host or comes back, against what stood in it."""
    keeper = _Keeper(crowd.cache.num_blocks)
    outcome = run(adapter, crowd, keeper)
    return evidence_of(SWAPPED, 1, [*outcome.broken, *keeper.wrong], dict(keeper.goals))


class _Looker(Watcher):
    """Knows the plans that were made since it looked last."""

    def __init__(self) -> None:
        self._num_seen = 0

    def new_plans(self, session: SteppingSession) -> list[PlanRecord]:
        records = session.records()
        new = [one for one in records[self._num_seen :] if isinstance(one, PlanRecord)]
        self._num_seen = len(records)
        return new


class _Spoiler(_Looker):
    """Writes NaN into empty blocks, and behind the last token of those who just ran."""

    def __init__(self, block_size: int) -> None:
        super().__init__()
        self.goals = Counter({"poisoned blocks that were taken": 0, "poisoned ends of blocks": 0})
        self._size = block_size
        self._spoilt: set[int] = set()

    def before(self, session: SteppingSession) -> None:
        memory = _memory(session)
        plans = self.new_plans(session)
        for record in plans:
            taken = {block for table in record.block_tables.values() for block in table}
            self.goals["poisoned blocks that were taken"] += len(taken & self._spoilt)
            self._spoilt -= taken
        # Whoever the last plan ran has, until the next one, nothing of worth behind its tokens.
        for entry in plans[-1].plan.scheduled if plans else ():
            block, slot = divmod(_end(entry), self._size)
            table = plans[-1].block_tables[entry.seq_id]
            if slot and table[block]:
                memory.poison(table[block], first_slot=slot)
                self.goals["poisoned ends of blocks"] += 1
        for block_id in memory.empty_blocks():
            memory.poison(block_id)
            self._spoilt.add(block_id)


class _Keeper(_Looker):
    """Keeps each block that is swapped out, and compares what comes back."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.goals = Counter({"blocks swapped out": 0, "blocks swapped in": 0})
        self._num_blocks = num_blocks
        self._before: list[Tensor] = []
        self._kept: dict[int, Tensor] = {}
        """By host block."""

    def before(self, session: SteppingSession) -> None:
        memory = _memory(session)
        self._before = [memory.read_block(block) for block in range(self._num_blocks)]

    def after(self, session: SteppingSession) -> None:
        memory = _memory(session)
        for record in self.new_plans(session):
            self._compare(record.plan, memory)

    def _compare(self, plan: StepPlan, memory: MemorySession) -> None:
        for source, destination in plan.swap_outs:
            self._kept[destination] = self._before[source]
            self.goals["blocks swapped out"] += 1
            if not self._same(memory.read_block(destination, of_host=True), self._before[source]):
                self.wrong.append(
                    f"step {plan.step}: host block {destination} is not block {source} as it was"
                )
        for source, destination in plan.swap_ins:
            self.goals["blocks swapped in"] += 1
            known = _num_known_slots(plan, destination, self._kept[source].shape[2])
            back = memory.read_block(destination)[:, :, :known]
            if not self._same(back, self._kept[source][:, :, :known]):
                self.wrong.append(
                    f"step {plan.step}: block {destination} is not what host block {source} got"
                )

    @staticmethod
    def _same(one: "Tensor", other: "Tensor") -> bool:
        """Bit by bit; NaN equals itself."""
        import torch  # which an engine without a model does not need

        return torch.equal(
            *(tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other))
        )


def _num_known_slots(plan: StepPlan, block_id: int, block_size: int) -> int:
    """Slots of the swapped-in block that its sequence had filled before this step."""
    for new in plan.introduced:
        if block_id in new.block_ids:
            [entry] = [one for one in plan.scheduled if one.seq_id == new.seq_id]
            before = new.block_ids.index(block_id) * block_size
            return max(0, min(block_size, entry.num_computed_tokens - before))
    return block_size


def _end(entry: ScheduledSequence) -> int:
    return entry.num_computed_tokens + entry.num_scheduled_tokens


def _memory(session: SteppingSession) -> MemorySession:
    if not isinstance(session, MemorySession):
        raise AdapterLied(
            "the adapter claims 'read_kv' and 'poison', but its sessions lack empty_blocks, "
            "read_block or poison"
        )
    return session
