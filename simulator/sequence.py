"""Decides nothing: what the twin remembers of a request and of each of its sequences."""

from dataclasses import dataclass, field
from typing import Literal

from pagetwin.engine.request import Request, sequence_id
from pagetwin.simulator.prefix_key import ROOT, Extras, PrefixKey, chain_keys

Status = Literal["waiting", "running", "swapped", "ended"]


@dataclass(eq=False, slots=True)
class TwinGroup:
    """A request and its sequences; one sequence until it forks or selects (P2.8)."""

    request: Request
    length_cap: int
    """Tokens at which a limit on the length ends a sequence of it (P5.1a)."""
    sequences: list["TwinSequence"] = field(default_factory=list)
    has_split: bool = False
    was_scheduled: bool = False
    is_beam_search: bool = field(init=False)
    num_samples: int = field(init=False)
    num_prompt_tokens: int = field(init=False)
    max_tokens: int | None = field(init=False)
    stop_ids: frozenset[int] = field(init=False)
    """Tokens that end a sequence of it, once it has min_tokens."""

    def __post_init__(self) -> None:
        self.is_beam_search = self.request.beam_search is not None
        self.num_samples = self.request.num_samples
        self.num_prompt_tokens = self.request.num_prompt_tokens
        params = self.request.sampling_params
        self.max_tokens = params.max_tokens
        eos = () if params.ignore_eos else self.request.eos_token_ids
        self.stop_ids = frozenset((*params.stop_token_ids, *eos))

    def will_split(self) -> bool:
        """It is one sequence now that stands for several samples, or for a beam search."""
        return not self.has_split and (self.num_samples > 1 or self.is_beam_search)

    @property
    def live(self) -> list["TwinSequence"]:
        return [seq for seq in self.sequences if seq.status != "ended"]

    @property
    def is_running(self) -> bool:
        """Whether all of its live sequences run."""
        return all(seq.status == "running" for seq in self.live)


@dataclass(eq=False, slots=True)
class TwinSequence:
    """One sequence.

                 admit                  result ends it, or abort
    waiting -----------------> running --------------------------> ended
       ^  <------ recompute -----'  ^ |                              ^
       '-- abort ---.       swap in | | swap out                     |
                    '-> ended       swapped ---------- abort --------'

    `token_ids` and `num_computed_tokens` are confirmed by results; what is `planned` counts the
    steps in flight as done (P5.3a).
    """

    group: TwinGroup
    sample_index: int
    token_ids: list[int]
    num_computed_tokens: int = 0
    num_planned_computed: int = field(init=False)
    table: list[int] = field(default_factory=list)
    host_table: list[int | None] = field(default_factory=list)
    status: Status = "waiting"
    keys: list[PrefixKey] = field(default_factory=list)
    decodes_until: int = 0
    """See `decoding`: below so many computed tokens, steps do little but give it a token."""
    seq_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.seq_id = sequence_id(self.group.request.request_id, self.sample_index)
        self.num_planned_computed = self.num_computed_tokens

    @property
    def is_in_flight(self) -> bool:
        return self.num_planned_computed > self.num_computed_tokens

    @property
    def weight(self) -> int:
        """What it counts towards max_num_seqs (P2.8)."""
        return 1 if self.group.has_split else self.group.num_samples

    @property
    def rests(self) -> bool:
        """A beam with nothing to compute, which waits for the others (P2.8a).

        One that the plan in the making has just given tokens does not rest yet.
        """
        return self.group.is_beam_search and self.num_computed_tokens == len(self.token_ids)

    def num_placeholders(self) -> int:
        """Unknown tokens of steps in flight; a group that splits and a beam wait instead."""
        if not self.is_in_flight or self.group.will_split() or self.group.is_beam_search:
            return 0
        # The step that computes the last token samples one (P2.7), each step after it one more.
        return max(0, self.num_planned_computed + 1 - len(self.token_ids))

    def num_planned_tokens(self) -> int:
        return len(self.token_ids) + self.num_placeholders()

    def num_output_tokens(self, num_tokens: int) -> int:
        return num_tokens - self.group.num_prompt_tokens


def prefix_keys(
    seq: TwinSequence, num_blocks: int, *, block_size: int, tags: Extras
) -> list[PrefixKey]:
    """Keys of the sequence's first `num_blocks` full blocks; made once, since tokens only grow."""
    num_known = len(seq.keys)
    if num_known < num_blocks:
        request = seq.group.request
        extras = [
            block_extras(request, index, block_size=block_size, tags=tags)
            for index in range(num_known, num_blocks)
        ]
        parent = seq.keys[-1].digest if seq.keys else ROOT
        token_ids = seq.token_ids[num_known * block_size : num_blocks * block_size]
        seq.keys.extend(chain_keys(parent, token_ids, extras))
    return seq.keys if len(seq.keys) == num_blocks else seq.keys[:num_blocks]


def block_extras(request: Request, index: int, *, block_size: int, tags: Extras) -> Extras:
    """Tagged fields of block `index` (P4.6); `tags` are those common to all blocks.

    Media counts where its span meets the block; its offset is the one in the prompt.
    """
    if not request.media and index > 0 and request.adapter_id is None:
        return tags
    extras = list(tags)
    if index == 0 and request.cache_salt is not None:
        extras.append(("salt", request.cache_salt))
    if request.adapter_id is not None:
        extras.append(("adapter", request.adapter_id))
    start, end = index * block_size, (index + 1) * block_size
    for span in request.media:
        if max(span.offset, start) < min(span.offset + span.length, end):
            extras.append(("media", f"{span.offset}:{span.digest}"))
    return tuple(extras)
