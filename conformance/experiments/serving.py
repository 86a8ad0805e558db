"""Plain serving: rounds of requests such as any client may send, judged by what comes back.

The workload is drawn uniformly and knows nothing of blocks or policies: it is the harness's second
generator, kept apart from conformance/strategies.py so that a blind spot of one is not both's.
"""

from collections.abc import Iterator, Sequence
from random import Random

from pagetwin.conformance.adapters.protocol import Adapter, AdapterError, Session, SessionConfig
from pagetwin.conformance.capability import Capabilities, Flag
from pagetwin.conformance.checkers.client import check_client, count_client_goals
from pagetwin.conformance.experiments.scenarios import crash
from pagetwin.conformance.observation import AnyObservation
from pagetwin.conformance.properties import CATALOGUE, Violation
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

TIMEOUT_S = 120.0
"""For one round of requests; an engine that needs longer counts as hanging."""
MAX_REQUESTS = 8
MAX_PROMPT = 40
MAX_OUTPUT = 24
ROUNDS_PER_SESSION = 8


class Serving:
    """Judges what every client can: requests end once, in time, by the rules of their ends."""

    id = "serving"
    judges = (
        "life.no-crash",
        "life.ends",
        "life.exactly-once",
        "life.silent-after-end",
        "life.length",
        "life.stop-token",
    )
    needs = frozenset({Flag.TOKEN_PROMPT})
    weight = 1.0

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        random = Random(seed)
        info, capabilities = adapter.describe(), adapter.capabilities()
        vocab_size = info.vocab_size or 1000
        session: Session | None = None
        done = 0
        try:
            while budget.allows(done):
                if done % ROUNDS_PER_SESSION == 0:
                    if session is not None:
                        session.close()
                    session = adapter.open(SessionConfig())
                assert session is not None
                wanted = [
                    draw_request(random, f"s{seed}-{done}-{i}", vocab_size, capabilities)
                    for i in range(random.randint(1, MAX_REQUESTS))
                ]
                yield from self._round(session, wanted, info.max_model_len)
                done += 1
        finally:
            if session is not None:
                session.close()

    def _round(
        self,
        session: Session,
        wanted: Sequence[tuple[Request, int | None]],
        max_model_len: int | None,
    ) -> Iterator[Evidence]:
        before = len(session.observations())
        found: list[Violation] = []
        try:
            for request, cancel_after in wanted:
                session.submit(request, cancel_after=cancel_after)
            session.run(TIMEOUT_S)
        except AdapterError:
            # The engine is gone or hangs: nothing after this can be believed, so the run ends.
            raise
        except Exception as error:
            found.append(crash(error))
        observed: Sequence[AnyObservation] = session.observations()[before:]
        requests = {request.request_id: request for request, _ in wanted}
        if not found:
            found += check_client(observed, requests, max_model_len=max_model_len)
        goals = count_client_goals(observed, requests)
        for property_id in self.judges:
            first = next((one for one in found if one.property_id == property_id), None)
            own = {goal: goals[goal] for goal in CATALOGUE[property_id].goals}
            yield Evidence(
                property_id=property_id, examples=len(wanted), goals=own, violation=first
            )


def draw_request(
    random: Random, request_id: str, vocab_size: int, capabilities: Capabilities
) -> tuple[Request, int | None]:
    """A request within what the engine supports, and after how many tokens its client gives up."""
    length = random.randint(1, MAX_PROMPT)
    stops: tuple[int, ...] = ()
    if capabilities.has(Flag.STOP_TOKENS) and random.random() < 0.5:
        # A sixth of the vocabulary, at most 128 ids: likely to be met, and not always.
        count = min(128, max(1, vocab_size // 6))
        stops = tuple(sorted(random.sample(range(vocab_size), count)))
    params = SamplingParams(
        temperature=1.0 if capabilities.has(Flag.TEMPERATURE) and random.random() < 0.7 else 0.0,
        max_tokens=random.randint(1, MAX_OUTPUT),
        stop_token_ids=stops,
        ignore_eos=capabilities.has(Flag.IGNORE_EOS),
        seed=random.randrange(2**31) if capabilities.has(Flag.SEED) else None,
    )
    prompt = tuple(random.randrange(vocab_size) for _ in range(length))
    gives_up = capabilities.has(Flag.CANCEL) and random.random() < 0.25
    cancel_after = random.randint(1, MAX_OUTPUT) if gives_up else None
    request = Request(request_id=request_id, prompt_token_ids=prompt, sampling_params=params)
    return request, cancel_after
