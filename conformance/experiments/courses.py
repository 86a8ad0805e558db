"""Courses: many histories of a few contexts, as data.

A context, the *probe*, is asked in every course; what happens around it differs: who runs beside
it, in which pieces it is computed, what the cache holds, who is preempted. A right engine answers a
probe alike in all of them. Each course names the goals that show that what it is about happened.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from pagetwin.conformance.capability import Flag
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

Knobs = Mapping[str, Any]
Tokens = tuple[int, ...]

# Goals have the names of conformance/goals.py; hits are counted from the outside as well.
HITS = "full hits"
EVICTIONS = "evictions"
RECOMPUTES = "recompute preemptions"
SWAPS = "swap preemptions"
PASSED_OVER = "requests passed over"
CHUNKS = "chunks that end before the prompt"
COPIES = "copy-on-write copies"
IN_FLIGHT = "plans with a step in flight"


_NO_CACHE: Knobs = {"enable_prefix_caching": False, "enable_partial_hits": False}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request of a course; `probe` is the context it asks again, None for a bystander."""

    request: Request
    probe: str | None = None


@dataclass(frozen=True, kw_only=True)
class Course:
    """One history: phases one after the other, the requests of a phase submitted together."""

    name: str
    property_id: str
    """What a different answer breaks."""
    phases: tuple[tuple[Asked, ...], ...]
    knobs: Knobs = field(default_factory=dict)
    """Fields of CacheConfig and SchedulerConfig that differ from the roomy ones."""
    goals: tuple[str, ...] = ()
    """What must have happened, or the course shows nothing."""
    invariance: Flag
    """What an engine must promise for log-probabilities to have equal bits here."""
    needs: tuple[Flag, ...] = ()
    as_it_is: bool = False
    """An engine that cannot be configured may run it with the knobs it has."""

    def asked(self) -> Iterator["Asked"]:
        """Its requests in order."""
        return (one for phase in self.phases for one in phase)


@dataclass(frozen=True, kw_only=True)
class Probe:
    name: str
    prompt: Tokens
    params: SamplingParams


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What courses are cut to: the engine's blocks and vocabulary."""

    vocab_size: int
    block_size: int
    max_model_len: int
    num_tokens: int = 10
    """Output tokens of each request."""
    with_seeds: bool = True
    """Whether some probes draw their tokens with a seed of their own."""
    num_logprobs: int | None = None
    """What probes ask for; None where the engine reports none."""


def make_probes(setting: Setting, random: Random) -> list[Probe]:
    """Prompts around block edges, some greedy and some drawn with a seed of their own; two share
    whole blocks and part of one more."""
    size = setting.block_size
    longest = min(setting.max_model_len - setting.num_tokens, 6 * size)
    lengths = [max(1, min(longest, n)) for n in (2 * size - 1, 3 * size, 4 * size + 1, 2 * size)]
    prompts = [_tokens(random, setting, length) for length in lengths]
    shared = prompts[2][: 2 * size + size // 2]
    prompts.append((*shared, *_tokens(random, setting, size)))
    probes = []
    for i, prompt in enumerate(prompts):
        is_drawn = setting.with_seeds and i % 2 == 1
        params = SamplingParams(
            temperature=0.8 if is_drawn else 0.0,
            seed=100 + i if is_drawn else None,
            logprobs=setting.num_logprobs,
            max_tokens=setting.num_tokens,
            ignore_eos=True,
            detokenize=False,
        )
        probes.append(Probe(name=f"probe-{i}", prompt=prompt, params=params))
    return probes


def make_courses(setting: Setting, seed: int) -> list[Course]:
    """All courses over the same probes; the first, each probe by itself, is the baseline."""
    random = Random(seed)
    writer = _Writer(setting, random, make_probes(setting, random))
    makers: tuple[Callable[[], Course], ...] = (
        writer.alone,
        writer.without_cache,
        writer.together,
        writer.in_chunks,
        writer.warm,
        writer.partly_evicted,
        writer.there_and_back,
        writer.cold_twins,
        writer.waiting,
        writer.forked,
        partial(writer.preempted, "recompute"),
        partial(writer.preempted, "swap"),
        writer.asynchronous,
    )
    return [make() for make in makers]


def batch_course(setting: Setting, seed: int) -> Course:
    """Every probe in one batch with bystanders."""
    random = Random(seed)
    return _Writer(setting, random, make_probes(setting, random)).together()


class _Writer:
    """Writes courses; every request gets an id of its own."""

    def __init__(self, setting: Setting, random: Random, probes: Sequence[Probe]) -> None:
        self._setting = setting
        self._random = random
        self._probes = probes
        self._count = 0

    def alone(self) -> Course:
        phases = tuple((self._ask(probe),) for probe in self._probes)
        return Course(
            name="alone",
            property_id="iso.history-independence",
            phases=phases,
            knobs=_NO_CACHE,
            invariance=Flag.INVARIANT_RUN,
            as_it_is=True,
        )

    def without_cache(self) -> Course:
        """Twice, so that a noisy engine, or one that keeps state, differs from itself."""
        phases = tuple((self._ask(probe),) for probe in (*self._probes, *self._probes))
        return Course(
            name="alone again, twice",
            property_id="iso.history-independence",
            phases=phases,
            knobs=_NO_CACHE,
            invariance=Flag.INVARIANT_RUN,
            as_it_is=True,
        )

    def together(self) -> Course:
        phase = [self._ask(probe) for probe in self._probes]
        phase += [self._bystander() for _ in range(7)]
        self._random.shuffle(phase)
        return Course(
            name="in one batch",
            property_id="iso.history-independence",
            phases=(tuple(phase),),
            invariance=Flag.INVARIANT_BATCH,
            as_it_is=True,
        )

    def in_chunks(self) -> Course:
        chunk = max(3, self._setting.block_size // 2 + 1)
        return Course(
            name="in chunks",
            property_id="iso.history-independence",
            phases=(tuple(self._ask(probe) for probe in self._probes),),
            knobs={"max_num_batched_tokens": chunk + 8, "max_num_seqs": 8},
            goals=(CHUNKS,),
            invariance=Flag.INVARIANT_CHUNK,
        )

    def warm(self) -> Course:
        phases = tuple((self._ask(probe),) for probe in (*self._probes, *self._probes))
        return Course(
            name="cold, then warm",
            property_id="cache.hit-miss-parity",
            phases=phases,
            goals=(HITS,),
            as_it_is=True,
            invariance=Flag.INVARIANT_CACHE_HISTORY,
            needs=(Flag.PREFIX_CACHE,),
        )

    def partly_evicted(self) -> Course:
        probe = max(self._probes, key=lambda one: len(one.prompt))
        first = self._ask(probe)
        fillers = [(self._bystander(4 * self._setting.block_size),) for _ in range(3)]
        blocks = self._blocks(len(probe.prompt)) + self._blocks(4 * self._setting.block_size)
        return Course(
            name="partly evicted between",
            property_id="cache.hit-miss-parity",
            phases=((first,), *fillers, (self._ask(probe),), (self._ask(probe),)),
            knobs={"num_blocks": 1 + blocks, "max_num_seqs": 4},
            goals=(EVICTIONS, HITS),
            invariance=Flag.INVARIANT_CACHE_HISTORY,
            needs=(Flag.PREFIX_CACHE,),
        )

    def there_and_back(self) -> Course:
        """A, B, A for each probe, where B parts from A at a block's edge or inside a block."""
        phases: list[tuple[Asked, ...]] = []
        size = self._setting.block_size
        for i, probe in enumerate(self._probes):
            keep = size if i % 2 else size + size // 2
            other = (*probe.prompt[:keep], *_tokens(self._random, self._setting, size))
            phases += [(self._ask(probe),), (self._bystander(prompt=other),), (self._ask(probe),)]
        return Course(
            name="A, B, A",
            property_id="cache.ABA",
            phases=tuple(phases),
            goals=(HITS,),
            as_it_is=True,
            invariance=Flag.INVARIANT_CACHE_HISTORY,
            needs=(Flag.PREFIX_CACHE,),
        )

    def cold_twins(self) -> Course:
        """The same context several times in one step, none of them cached yet."""
        phases = tuple(tuple(self._ask(probe) for _ in range(3)) for probe in self._probes)
        return Course(
            name="cold twins",
            property_id="cache.concurrent-cold",
            phases=phases,
            as_it_is=True,
            invariance=Flag.INVARIANT_CACHE_HISTORY,
            needs=(Flag.PREFIX_CACHE,),
        )

    def waiting(self) -> Course:
        """The same context twice at once, where the second waits for the first's blocks, and
        somebody behind them who does not."""
        phases = tuple(
            (self._ask(probe), self._ask(probe), self._bystander()) for probe in self._probes
        )
        return Course(
            name="waiting for a prefix",
            property_id="cache.hit-miss-parity",
            phases=phases,
            knobs={"wait_for_prefix": True},
            goals=(HITS, PASSED_OVER),
            invariance=Flag.INVARIANT_CACHE_HISTORY,
            needs=(Flag.PREFIX_CACHE,),
        )

    def forked(self) -> Course:
        """Three samples of each greedy context, as its only candidates: they share its blocks."""
        greedy = [probe for probe in self._probes if probe.params.is_greedy]
        asked = []
        for probe in greedy:
            params = SamplingParams(
                n=3,
                temperature=1.0,
                top_k=1,
                max_tokens=self._setting.num_tokens,
                ignore_eos=True,
                detokenize=False,
            )
            asked.append(self._ask(probe, params))
        return Course(
            name="forked",
            property_id="cow.fork-parity",
            phases=(tuple(asked),),
            goals=(COPIES,),
            as_it_is=True,
            invariance=Flag.INVARIANT_BATCH,
            needs=(Flag.SAMPLES, Flag.TEMPERATURE),
        )

    def preempted(self, mode: str) -> Course:
        return Course(
            name=f"preempted by {mode}",
            property_id="iso.history-independence",
            phases=(self._crowd(),),
            knobs=self._tight(mode),
            goals=(SWAPS if mode == "swap" else RECOMPUTES,),
            invariance=Flag.INVARIANT_PREEMPT,
        )

    def asynchronous(self) -> Course:
        return Course(
            name="asynchronous steps in a tight pool",
            property_id="iso.history-independence",
            phases=(self._crowd(),),
            knobs={**self._tight("recompute"), "async_scheduling": True},
            goals=(RECOMPUTES, IN_FLIGHT),
            invariance=Flag.INVARIANT_PREEMPT,
        )

    def _crowd(self) -> tuple[Asked, ...]:
        crowd = [self._ask(probe) for probe in self._probes]
        crowd += [self._bystander() for _ in range(3)]
        return tuple(crowd)

    def _tight(self, mode: str) -> Knobs:
        """Room for the longest request, and for about half of what all together need. No request
        may be longer: some engines do not start without room for one of full length."""
        needs = [self._blocks(len(probe.prompt)) for probe in self._probes]
        num_blocks = 1 + max(max(needs) + 1, sum(needs) // 2)
        return {
            "num_blocks": num_blocks,
            "max_model_len": max(needs) * self._setting.block_size,
            "max_num_seqs": 8,
            "preemption_mode": mode,
            "num_host_blocks": 2 * num_blocks if mode == "swap" else 0,
        }

    def _blocks(self, prompt_length: int) -> int:
        return -(-(prompt_length + self._setting.num_tokens) // self._setting.block_size)

    def _ask(self, probe: Probe, params: SamplingParams | None = None) -> Asked:
        request = Request(
            request_id=self._next_id(),
            prompt_token_ids=probe.prompt,
            sampling_params=params or probe.params,
            arrival_s=float(self._count),
        )
        return Asked(request=request, probe=probe.name)

    def _bystander(self, length: int = 0, prompt: Tokens = ()) -> Asked:
        if not prompt:
            length = length or self._random.randint(1, 3 * self._setting.block_size)
            prompt = _tokens(self._random, self._setting, length)
        params = SamplingParams(
            temperature=0.0,
            max_tokens=self._setting.num_tokens,
            ignore_eos=True,
            detokenize=False,
        )
        request = Request(
            request_id=self._next_id(),
            prompt_token_ids=prompt,
            sampling_params=params,
            arrival_s=float(self._count),
        )
        return Asked(request=request)

    def _next_id(self) -> str:
        self._count += 1
        return f"ask-{self._count:04}"


def _tokens(random: Random, setting: Setting, length: int) -> Tokens:
    return tuple(random.randrange(setting.vocab_size) for _ in range(length))
