"""Properties of what an engine answers: judged from tokens and scores, on any engine that shows
them."""

from pagetwin.conformance.capability import Flag, Level
from pagetwin.conformance.catalogue.property import Property

_TOKENS = (Flag.TOKEN_IDS, Flag.TOKEN_PROMPT)
_CACHE = (*_TOKENS, Flag.PREFIX_CACHE)
_DRAWS = (*_TOKENS, Flag.TEMPERATURE)


def _row(
    property_id: str,
    statement: str,
    *goals: str,
    needs: tuple[Flag, ...] = _TOKENS,
    level: Level = Level.TOKENS,
    weight: float = 0.0,
) -> Property:
    return Property(
        id=property_id,
        statement=statement,
        needs=needs,
        level=level,
        goals=goals,
        false_alarm_weight=weight,
    )


HISTORIES = (
    _row(
        "iso.history-independence",
        "A request's answer is the same whatever runs beside it, in whatever pieces it is "
        "computed, whatever was cached, and however often it is preempted.",
    ),
    _row(
        "iso.neighbour",
        "What other requests of a batch contain changes nothing in a request's answer.",
    ),
    _row(
        "cache.hit-miss-parity",
        "A request that hits the prefix cache answers as one that misses it.",
        "full hits",
        needs=_CACHE,
    ),
    _row(
        "cache.ABA",
        "A context that returns after another one with the same beginning answers as before.",
        "full hits",
        needs=_CACHE,
    ),
    _row(
        "cache.concurrent-cold",
        "Requests with one context that start together, none cached, answer alike.",
        needs=_CACHE,
    ),
    _row(
        "cache.not-a-noop",
        "With the cache on, a prompt of some blocks that is asked again finds them.",
        needs=(*_CACHE, Flag.CACHED_TOKEN_COUNT),
    ),
    _row(
        "cow.fork-parity",
        "Samples of one prompt, which share its blocks, answer as requests of their own.",
        needs=(*_DRAWS, Flag.SAMPLES),
    ),
)
ENDS = (
    _row(
        "life.limit-cuts",
        "An output with max_tokens = n is the first n tokens of the longer one.",
    ),
    _row(
        "life.stop-cuts",
        "An output with a stop token is the one without it, up to the token's first place.",
        "ends by stop",
        needs=(*_TOKENS, Flag.STOP_TOKENS),
    ),
    _row(
        "life.eos-cuts",
        "An output ends at the first end of sequence, stop token or limit of the one that ignores "
        "them; with ignore_eos an end of sequence is a token like any other.",
        "ends by end of sequence",
        "ends of sequence ignored",
        needs=(*_TOKENS, Flag.IGNORE_EOS, Flag.STOP_TOKENS, Flag.OWN_EOS),
    ),
    _row(
        "life.min-tokens",
        "With min_tokens = m no stop token ends an output before it has m tokens; the first one "
        "behind them does.",
        "stop tokens before min_tokens",
        "stops behind min_tokens",
        needs=(*_TOKENS, Flag.IGNORE_EOS, Flag.STOP_TOKENS, Flag.MIN_TOKENS),
    ),
    _row(
        "life.stop-strings",
        "An output ends with the token that completes its stop string; its text is that of the "
        "longer output up to the string, or with it if asked for.",
        "ends by stop string",
        "stop strings over several tokens",
        needs=(*_TOKENS, Flag.TEXT, Flag.IGNORE_EOS, Flag.STOP_TOKENS, Flag.STOP_STRINGS),
    ),
    _row(
        "life.streams-add-up",
        "The pieces of a stream add up to the tokens, the text and the reason of the same answer "
        "asked for whole.",
        "answers that came in pieces",
        needs=(*_TOKENS, Flag.IGNORE_EOS, Flag.STREAMING),
    ),
    _row(
        "life.cancel-harms-nobody",
        "Clients that hang up change nothing for the others, and have heard a beginning of what "
        "they would have heard.",
        "cancelled in decode",
        needs=(*_TOKENS, Flag.CANCEL),
    ),
)
SAMPLING = (
    _row(
        "samp.support",
        "No token is drawn that temperature, min-p, top-k, top-p and masks exclude, and the "
        "unlikeliest one that they leave is drawn as often as it should be.",
        "draws from a cut support",
        needs=(*_DRAWS, Flag.CHECKPOINT),
        weight=1.0,
    ),
    _row(
        "samp.coupled",
        "With the noise known, each drawn token is the one that wins.",
        needs=(*_DRAWS, Flag.CHECKPOINT, Flag.NOISE_KNOWN),
    ),
    _row(
        "samp.pit",
        "Drawn tokens follow the reference's probabilities, at every position.",
        needs=(*_DRAWS, Flag.CHECKPOINT),
        weight=2.0,
    ),
    _row(
        "samp.gof",
        "Many draws from one distribution follow it.",
        needs=(*_DRAWS, Flag.CHECKPOINT),
        weight=1.0,
    ),
    _row(
        "samp.independence",
        "A draw depends neither on the request's earlier draws nor on the requests beside it.",
        needs=(*_DRAWS, Flag.CHECKPOINT),
        weight=2.0,
    ),
    _row(
        "samp.seed-semantics",
        "Equal seeds draw equal tokens in any batch, other seeds draw others.",
        "batches",
        needs=(*_DRAWS, Flag.SEED),
    ),
    _row(
        "samp.greedy-is-T0-limit",
        "The only candidate (top_k = 1), and the likeliest one by far at a low temperature, is "
        "what a greedy request takes.",
        needs=_DRAWS,
    ),
    _row(
        "samp.penalties",
        "Greedy tokens under masks, bias and penalties are those of the documented formulas.",
        "tokens that a processor changed",
        needs=(*_TOKENS, Flag.CHECKPOINT, Flag.PENALTIES),
    ),
    _row(
        "samp.logprobs",
        "Reported log-probabilities are those of the documented stage, best tokens first.",
        needs=(*_TOKENS, Flag.CHECKPOINT, Flag.TOPK_LOGPROB),
        level=Level.SCORES,
    ),
)
NUMERICS = (
    _row(
        "num.greedy-near-tie",
        "Greedy tokens are the reference's but for near ties that rounding explains.",
        needs=(*_TOKENS, Flag.CHECKPOINT),
    ),
    _row(
        "num.flip-rate",
        "Rounding turns no more greedy choices than the reference's margins let it.",
        needs=(*_TOKENS, Flag.CHECKPOINT),
        weight=1.0,
    ),
    _row(
        "num.logit-parity",
        "Log-probabilities differ from exact ones by rounding only, at block edges as elsewhere.",
        needs=(*_TOKENS, Flag.CHECKPOINT, Flag.PROMPT_LOGPROBS),
        level=Level.SCORES,
        weight=1.0,
    ),
    _row(
        "num.threeway",
        "Against exact values the engine errs little more than the reference in its own dtype.",
        needs=(*_TOKENS, Flag.CHECKPOINT, Flag.PROMPT_LOGPROBS),
        level=Level.SCORES,
    ),
)
ATTENTION = tuple(
    _row(property_id, statement, needs=(Flag.ATTENTION,), level=Level.MEMORY)
    for property_id, statement in (
        (
            "num.attn",
            "Every element of paged attention is exact but for its own error bound.",
        ),
        (
            "num.scaling",
            "Attention's errors grow with the context as rounding to nearest lets them.",
        ),
        (
            "num.poison-free",
            "What stands in free slots, tails and unwritten places changes no bit.",
        ),
        ("num.mask", "A token sees the positions up to its own, and no other sequence's."),
        (
            "num.table-permutation-bitwise",
            "Which physical blocks hold a sequence changes no bit.",
        ),
    )
)
PROPERTIES = (*HISTORIES, *ENDS, *SAMPLING, *NUMERICS, *ATTENTION)
