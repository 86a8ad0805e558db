"""Probes: for each capability that an adapter may claim, a request whose answer shows it."""

from collections.abc import Callable, Sequence

from pagetwin.conformance.adapters.protocol import (
    Adapter,
    FaultySession,
    MemorySession,
    PreemptingSession,
    RecordingSession,
    ResettableSession,
    ScoringSession,
    Session,
    SessionConfig,
    SteppingSession,
)
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.faults.fault import StepFails
from pagetwin.conformance.observation import (
    AnyObservation,
    CachedTokens,
    Cancelled,
    Finished,
    PromptScored,
    TextSeen,
    TokenSeen,
    pieces_of,
)
from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

TIMEOUT_S = 120.0
PROMPT_LENGTH = 40
NUM_TOKENS = 8


class Bench:
    """An adapter with what it says of itself, and requests made to its measure."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.info = adapter.describe()
        self.capabilities = adapter.capabilities()
        self.vocab_size = self.info.vocab_size or 1000
        self._num_requests = 0

    def request(self, *, first: int = 0, **params: object) -> Request:
        """A request with a prompt of PROMPT_LENGTH tokens, another one for each `first`."""
        self._num_requests += 1
        prompt = tuple((first + 7 * i) % self.vocab_size for i in range(PROMPT_LENGTH))
        wanted = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": self._ignores_eos}
        return Request(
            request_id=f"check-{self._num_requests}",
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(**(wanted | params)),  # type: ignore[arg-type]
        )

    def run(
        self, *requests: Request, session: Session | None = None, cancel_after: int | None = None
    ) -> list[AnyObservation]:
        """What the requests, run together, give; in a fresh session if none is given."""
        own = session or self.adapter.open(SessionConfig())
        try:
            before = len(own.observations())
            for request in requests:
                own.submit(request, cancel_after=cancel_after)
            own.run(TIMEOUT_S)
            return list(own.observations()[before:])
        finally:
            if session is None:
                own.close()

    def run_with_text(self, *requests: Request) -> list[AnyObservation]:
        """Likewise, in a session that asks for text if the engine has any."""
        config = SessionConfig(with_text=self.capabilities.has(Flag.TEXT))
        session = self.adapter.open(config)
        try:
            return self.run(*requests, session=session)
        finally:
            session.close()

    @property
    def _ignores_eos(self) -> bool:
        return self.capabilities.has(Flag.IGNORE_EOS)


def _tokens(observed: Sequence[AnyObservation]) -> list[TokenSeen]:
    return [one for one in observed if isinstance(one, TokenSeen)]


def _token_ids(bench: Bench) -> str:
    seen = _tokens(bench.run(bench.request()))
    outside = [one.token_id for one in seen if not 0 <= one.token_id < bench.vocab_size]
    if not seen:
        return "no token was seen"
    return f"token {outside[0]} is outside the vocabulary" if outside else ""


def _text(bench: Bench) -> str:
    seen = [one for one in bench.run_with_text(bench.request()) if isinstance(one, TextSeen)]
    return "" if seen else "no text was seen"


def _stop_strings(bench: Bench) -> str:
    free = [one.text for one in bench.run_with_text(bench.request()) if isinstance(one, TextSeen)]
    text = "".join(free)
    if not text:
        return "no text was seen"
    observed = bench.run_with_text(bench.request(stop=(text[0],)))
    stopped = [one.reason for one in observed if isinstance(one, Finished)] == ["stop"]
    return "" if stopped else f"stop string {text[0]!r}, the first character, stopped nothing"


def _streaming(bench: Bench) -> str:
    """Two requests beside each other: pieces of a stream stand among the other's."""
    pieces = {}
    for kind in ("delta", "final_only"):
        observed = bench.run_with_text(*(bench.request(output_kind=kind) for _ in range(2)))
        pieces[kind] = sum(pieces_of(observed).values())
    if pieces["delta"] > pieces["final_only"] == 2:
        return ""
    return f"two answers came in {pieces} pieces, by output_kind"


def _cancel(bench: Bench) -> str:
    observed = bench.run(bench.request(max_tokens=64), cancel_after=2)
    if not any(isinstance(one, Cancelled) for one in observed):
        return "cancel_after=2 of 64 tokens cancelled nothing"
    return ""


def _ignore_eos(bench: Bench) -> str:
    length = len(_tokens(bench.run(bench.request(max_tokens=32))))
    return "" if length == 32 else f"{length} tokens came of 32 with ignore_eos"


def _stop_tokens(bench: Bench) -> str:
    free = [one.token_id for one in _tokens(bench.run(bench.request()))]
    if not free:
        return "no token was seen"
    observed = bench.run(bench.request(stop_token_ids=(free[0],)))
    stopped = [one.reason for one in observed if isinstance(one, Finished)] == ["stop"]
    return "" if stopped else f"stop token {free[0]}, the first one to come, stopped nothing"


def _samples(bench: Bench) -> str:
    if not bench.capabilities.has(Flag.SEED):
        return ""
    observed = bench.run(bench.request(temperature=1.0, n=2, seed=1))
    found = {one.sample_index for one in observed if isinstance(one, Finished)}
    return "" if found == {0, 1} else f"n=2 gave the samples {sorted(found)}"


def _seed(bench: Bench) -> str:
    outputs = []
    for seed in (1, 1, 2):
        request = bench.request(temperature=1.0, seed=seed, max_tokens=32)
        outputs.append([one.token_id for one in _tokens(bench.run(request))])
    if outputs[0] != outputs[1]:
        return "equal seeds gave different outputs"
    return "seeds 1 and 2 gave the same 32 tokens" if outputs[0] == outputs[2] else ""


def _chosen_logprob(bench: Bench) -> str:
    seen = _tokens(bench.run(bench.request(logprobs=0)))
    good = [one for one in seen if one.logprob is not None and one.logprob <= 1e-6]
    return "" if seen and good == seen else "a token came without its log-probability"


def _topk_logprob(bench: Bench) -> str:
    seen = _tokens(bench.run(bench.request(logprobs=2)))
    for one in seen:
        scores = [top.logprob for top in one.top]
        if len(scores) < 2 or scores != sorted(scores, reverse=True):
            return f"logprobs=2 gave {len(scores)} scores, or not the best first"
    return "" if seen else "no token was seen"


def _prompt_logprobs(bench: Bench) -> str:
    observed = bench.run(bench.request(prompt_logprobs=0))
    lengths = [len(one.logprobs) for one in observed if isinstance(one, PromptScored)]
    good = lengths == [PROMPT_LENGTH - 1]
    return "" if good else f"prompt scores of lengths {lengths}, not one of {PROMPT_LENGTH - 1}"


def _cached_token_count(bench: Bench) -> str:
    session = bench.adapter.open(SessionConfig())
    try:
        counts = []
        for _ in range(2):
            observed = bench.run(bench.request(), session=session)
            counts.append([one.count for one in observed if isinstance(one, CachedTokens)])
    finally:
        session.close()
    if [len(one) for one in counts] != [1, 1]:
        return f"one count for each request was due, there were {[len(one) for one in counts]}"
    expected = bench.capabilities.has(Flag.PREFIX_CACHE)
    short = bench.info.block_size is not None and bench.info.block_size >= PROMPT_LENGTH
    if expected and not short and not counts[1][0]:
        return "the same prompt again found nothing in the prefix cache"
    return ""


def _has(protocol: type) -> Callable[[Bench], str]:
    def probe(bench: Bench) -> str:
        session = bench.adapter.open(SessionConfig())
        session.close()
        missing = f"its sessions are no {protocol.__name__}"
        return "" if isinstance(session, protocol) else missing

    return probe


def _step_trace(bench: Bench) -> str:
    from pagetwin.conformance.history import output_tokens

    session = bench.adapter.open(SessionConfig())
    try:
        if not isinstance(session, RecordingSession):
            return "its sessions have no records()"
        request = bench.request()
        seen = [one.token_id for one in _tokens(bench.run(request, session=session))]
        recorded = output_tokens(list(session.records()))
    except TraceError as error:
        return str(error)
    finally:
        session.close()
    own = recorded.get(f"{request.request_id}/0")
    return "" if own == seen else f"records say {own}, the client saw {seen}"


def _reset_cache(bench: Bench) -> str:
    session = bench.adapter.open(SessionConfig())
    try:
        if not isinstance(session, ResettableSession):
            return "its sessions have no reset_prefix_cache()"
        bench.run(bench.request(), session=session)
        return "" if session.reset_prefix_cache() else "an idle engine would not reset its cache"
    finally:
        session.close()


def _fault_injection(bench: Bench) -> str:
    session = bench.adapter.open(SessionConfig(fault=StepFails(number=1)))
    try:
        if not isinstance(session, FaultySession):
            return "its sessions are no FaultySession"
        observed = bench.run(bench.request(), session=session)
        struck = session.strikes.count
    finally:
        session.close()
    ends = [one.reason for one in observed if isinstance(one, Finished)]
    return "" if struck and ends == ["error"] else f"a step that fails struck {struck}; {ends}"


def _force_preempt(bench: Bench) -> str:
    session = bench.adapter.open(SessionConfig())
    try:
        if not isinstance(session, PreemptingSession):
            return "its sessions have no force_preempt()"
        if session.force_preempt("nobody"):
            return "it preempts a request that does not live"
        if not isinstance(session, SteppingSession):
            return ""
        request = bench.request()
        session.submit(request)
        session.start_step()
        session.finish_step()
        if not session.force_preempt(request.request_id):
            return "it does not preempt a request that runs"
        ends = [one.reason for one in bench.run(session=session) if isinstance(one, Finished)]
        return "" if ends == ["length"] else f"a request that was preempted ends with {ends}"
    finally:
        session.close()


def _score(bench: Bench) -> str:
    session = bench.adapter.open(SessionConfig())
    try:
        if not isinstance(session, ScoringSession):
            return "its sessions have no score()"
        wanted = [1, 2, 3]
        scores = session.score([3, 1, 2], wanted)
    finally:
        session.close()
    if [one.token_id for one in scores] != wanted:
        return f"scores of {wanted} are of {[one.token_id for one in scores]}"
    return "" if all(one.logprob <= 1e-6 for one in scores) else "a log-probability is above 0"


PROBES: dict[Flag, Callable[[Bench], str]] = {
    Flag.TEXT: _text,
    Flag.STOP_STRINGS: _stop_strings,
    Flag.STREAMING: _streaming,
    Flag.TOKEN_IDS: _token_ids,
    Flag.CANCEL: _cancel,
    Flag.SEED: _seed,
    Flag.IGNORE_EOS: _ignore_eos,
    Flag.STOP_TOKENS: _stop_tokens,
    Flag.SAMPLES: _samples,
    Flag.CHOSEN_LOGPROB: _chosen_logprob,
    Flag.TOPK_LOGPROB: _topk_logprob,
    Flag.PROMPT_LOGPROBS: _prompt_logprobs,
    Flag.SCORE: _score,
    Flag.CACHED_TOKEN_COUNT: _cached_token_count,
    Flag.RESET_CACHE: _reset_cache,
    Flag.STEP_TRACE: _step_trace,
    Flag.FAULT_INJECTION: _fault_injection,
    Flag.STEP_CONTROL: _has(SteppingSession),
    Flag.READ_KV: _has(MemorySession),
    Flag.POISON: _has(MemorySession),
    Flag.FORCE_PREEMPT: _force_preempt,
}
"""What puts a claim to the proof; a probe returns what is wrong, or nothing."""
