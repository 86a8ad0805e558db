"""Decides what a step costs, given the terms that were fitted.

The device's part of a step that only decodes, run by a CUDA graph:

    products(graph's size) + a * (keys - s * repeated) + b * min(keys / n, run) * min(1, m / n)
    keys = max(context + n * tile / 2, n * tile)

of n sequences: products with weights, and attention, which goes through whole tiles of keys (each
sequence's last one is half full on average), reads them, and waits for the program that goes
through the longest run of them by itself, the less, the more sequences fill the device meanwhile.
Any other step:

    products(tokens) + f * (context - s * repeated) + b * context / n
        + c * pairs + d * chunks + e * samples

where a decoding sequence's keys are gone through by one program, which is waited for. The host's
part are straight lines in sequences and prompt tokens, one before the launch and one after the end,
and launches. Those of a step without a graph take now and then twice as long, for what else the
host's machine does: each such step has one of the measured lengths, drawn by what the step holds.
"""

import msgspec

from pagetwin.simulator.clock import to_ticks
from pagetwin.simulator.cost_model import DecodeLine, HostTicks, StepComposition
from pagetwin.simulator.costs.basis import Curve
from pagetwin.simulator.costs.graph_sizes import graph_sizes
from pagetwin.simulator.costs.roofline import Roofline


class _Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what follows: seconds, none negative."""


class ContextCosts(_Terms, frozen=True, kw_only=True, dict=True):
    """Of keys and values that decoding sequences see."""

    per_token_s: float
    repeated_share: float = 0.0
    """What a token costs less that another sequence sees, too, in the same block: 0 to 1."""
    per_position_s: float = 0.0
    """What a program takes for each key that it goes through."""
    run: int = 1024
    """Keys that one program goes through at most."""
    num_idle: int = 8
    """Sequences up to which nothing hides that."""
    tile: int = 0
    """Keys that are gone through together; even."""


class GraphCosts(_Terms, frozen=True, kw_only=True):
    """Of decode steps that a CUDA graph runs."""

    products: Curve
    """By sequences, padded to a graph's size."""


class EagerCosts(_Terms, frozen=True, kw_only=True):
    """Of all other steps."""

    products: Curve
    """By tokens."""
    per_pair_s: float
    per_chunk_s: float
    per_sample_s: float
    per_context_s: float = 0.0
    """For tokens that decoding sequences see, beside prompts."""


class HostLine(_Terms, frozen=True, kw_only=True):
    """The host's, for a step."""

    constant_s: float = 0.0
    per_decode_s: float = 0.0
    """For each sequence that decodes."""
    per_chunk_s: float = 0.0
    """For each that prefills."""
    per_prefill_token_s: float = 0.0
    per_prefix_token_s: float = 0.0
    """For tokens before a chunk: most were just looked up in the prefix cache."""

    def ticks(self, parts: StepComposition) -> int:
        return to_ticks(
            self.constant_s
            + self.per_decode_s * parts.num_decode_sequences
            + self.per_chunk_s * parts.num_prefill_sequences
            + self.per_prefill_token_s * parts.num_prefill_tokens
            + self.per_prefix_token_s * parts.num_prefix_tokens
        )


class HostCosts(_Terms, frozen=True, kw_only=True):
    """The host's, for a step of one kind."""

    before: HostLine = HostLine()
    launch_s: float = 0.0
    """On average."""
    launches_s: tuple[float, ...] = ()
    """Lengths that are equally likely; empty: always that."""
    after: HostLine = HostLine()

    def ticks(self, parts: StepComposition) -> HostTicks:
        """With a launch as long as it is on average."""
        return self._with_launch(self.launch_s, parts)

    def drawn_ticks(self, parts: StepComposition) -> HostTicks:
        """With a launch drawn by the composition: the same for the same."""
        if not self.launches_s:
            return self.ticks(parts)
        return self._with_launch(self.launches_s[_draw(parts, len(self.launches_s))], parts)

    def _with_launch(self, launch_s: float, parts: StepComposition) -> HostTicks:
        return HostTicks(self.before.ticks(parts), to_ticks(launch_s), self.after.ticks(parts))


class StepCosts(_Terms, frozen=True, kw_only=True):
    """All that was fitted; None for a kind of step that never happened."""

    context: ContextCosts
    graph: GraphCosts | None
    eager: EagerCosts | None
    graph_host: HostCosts = HostCosts()
    eager_host: HostCosts = HostCosts()


class CalibratedCosts:
    """Fitted costs as a `CostModel`: whole ticks, decode steps exactly on their lines.

    With a floor, no step is faster than its roofline.
    """

    def __init__(
        self,
        costs: StepCosts,
        *,
        max_num_seqs: int,
        floor: Roofline | None = None,
        label: str = "",
    ) -> None:
        self.label = label
        self.floor = floor
        self._costs = costs
        # Where one kind of step was never seen, the other's costs must do.
        self._eager = costs.eager or _without_graphs(costs.graph)
        self._sizes = graph_sizes(max_num_seqs) if costs.graph else ()
        context = costs.context
        self._per_token = to_ticks(context.per_token_s)
        self._per_repeated = int(self._per_token * context.repeated_share)
        self._products: dict[int, int] = {}
        """Ticks by sequences that decode."""
        self._hosts: dict[int, HostTicks] = {}

    def ticks(self, parts: StepComposition) -> int:
        if self._only_decodes(parts):
            count, context = parts.num_decode_sequences, parts.num_context_tokens
            line = self.decode_line(count, context, parts.num_repeated_tokens)
            return line.base + line.slope * context
        eager = self._eager
        seconds = eager.products.at(parts.num_prefill_tokens + parts.num_decode_sequences)
        seconds += eager.per_pair_s * parts.prefill_area
        seconds += eager.per_chunk_s * parts.num_prefill_sequences
        seconds += eager.per_sample_s * parts.num_samples
        share = self._costs.context.repeated_share
        seconds += eager.per_context_s * (
            parts.num_context_tokens - share * parts.num_repeated_tokens
        )
        mean_context = parts.num_context_tokens / max(parts.num_decode_sequences, 1)
        seconds += self._costs.context.per_position_s * mean_context
        ticks = max(1, to_ticks(seconds))
        return ticks if self.floor is None else max(ticks, self.floor.ticks(parts))

    def host_ticks(self, parts: StepComposition) -> HostTicks:
        if not self._only_decodes(parts):
            return self._costs.eager_host.drawn_ticks(parts)
        count = parts.num_decode_sequences
        if count not in self._hosts:
            is_graph = self._size(count) is not None
            host = self._costs.graph_host if is_graph else self._costs.eager_host
            self._hosts[count] = host.ticks(parts)
        return self._hosts[count]

    def decode_line(self, num_sequences: int, context: int, num_repeated: int = 0) -> DecodeLine:
        base, slope, last = self._attention_line(num_sequences, context, num_repeated)
        line = DecodeLine(base + self._decode_products(num_sequences), slope, last)
        if self.floor is None:
            return line
        return _upper(line, self.floor.decode_line(num_sequences, context, num_repeated), context)

    def _only_decodes(self, parts: StepComposition) -> bool:
        only_decodes = not parts.num_prefill_sequences
        return only_decodes and parts.num_samples == parts.num_decode_sequences

    def _size(self, count: int) -> int | None:
        """Of the graph that runs so many decoding sequences."""
        return next((size for size in self._sizes if size >= count), None)

    def _decode_products(self, count: int) -> int:
        if count not in self._products:
            size = self._size(count)
            if self._costs.graph is not None and size is not None:
                seconds = self._costs.graph.products.at(size)
            else:
                seconds = self._eager.products.at(count) + self._eager.per_sample_s * count
            self._products[count] = max(1, to_ticks(seconds))
        return self._products[count]

    def _attention_line(self, count: int, context: int, repeated: int) -> DecodeLine:
        costs, count = self._costs.context, max(count, 1)
        saved, half = self._per_repeated * repeated, count * (costs.tile // 2)
        hidden = min(1.0, costs.num_idle / count)
        per_position = to_ticks(costs.per_position_s * hidden / count)
        bend = count * max(costs.run, costs.tile)  # Keys from which on no run is longer.
        if context < half:
            keys = 2 * half
            return DecodeLine((self._per_token + per_position) * keys - saved, 0, half - 1)
        base, slope = self._per_token * half - saved, self._per_token
        if context + half <= bend:
            return DecodeLine(base + per_position * half, slope + per_position, bend - half)
        return DecodeLine(base + per_position * bend, slope)


def _upper(one: DecodeLine, other: DecodeLine, context: int) -> DecodeLine:
    """The higher of two lines at a context, up to where they cross or either ends."""
    ends = [line.last_context for line in (one, other) if line.last_context is not None]
    heights = [line.base + line.slope * context for line in (one, other)]
    # Of two that meet the steeper one, so that what follows is on it, too.
    is_one = (heights[0], one.slope) >= (heights[1], other.slope)
    higher, lower = (one, other) if is_one else (other, one)
    if lower.slope > higher.slope:
        crossing = (higher.base - lower.base) // (lower.slope - higher.slope)
        ends.append(max(crossing, context))
    return DecodeLine(higher.base, higher.slope, min(ends, default=None))


def _without_graphs(graph: GraphCosts | None) -> EagerCosts:
    assert graph is not None, "a fit has steps of one kind at least"
    return EagerCosts(products=graph.products, per_pair_s=0.0, per_chunk_s=0.0, per_sample_s=0.0)


def _draw(parts: StepComposition, count: int) -> int:
    """One of 0 to count - 1, by multiplicative hashing (Knuth, vol. 3, 6.4)."""
    key = 0
    for value in (parts.prefill_area, parts.num_prefill_tokens, parts.num_context_tokens):
        key = (key + value) * 0x9E3779B97F4A7C15 % 2**64
    return key * count >> 64
