"""Mutants of the twin: lockstep must blame the simulator as readily as the engine."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

STATE = "pagetwin.simulator.state:State"
POOL = "pagetwin.simulator.memory:BlockPool"


def _mutant(name: str, statement: str, trigger: str, *edits: Edit, bug: str = "") -> Mutant:
    return Mutant(
        id=f"twin.{name}",
        bug=bug,
        statement=statement,
        expects="twin.lockstep",
        trigger=trigger,
        edits=edits,
    )


TWIN = (
    _mutant(
        "rounds-blocks-down",
        "The twin rounds the need for blocks down.",
        "a length that is not whole blocks",
        Edit(
            f"{STATE}.blocks_for",
            "return -(-(num_tokens + self.lookahead) // self._block_size)",
            "return max(1, (num_tokens + self.lookahead) // self._block_size)",
        ),
    ),
    _mutant(
        "counts-hits-it-does-not-get",
        "The twin counts the hits of attempts that fail.",
        "a hit whose admission fails for want of blocks",
        Edit(
            "pagetwin.simulator.admission:_admit_waiting",
            "    hits = _with_partial_hit(builder.state, seq, full)\n",
            "    hits = _with_partial_hit(builder.state, seq, full)\n"
            "    builder.state.totals.prefix_hit_tokens += hits.num_partial_tokens\n",
        ),
        bug="N02",
    ),
    _mutant(
        "evicts-newest",
        "The twin takes the newest free block.",
        "any allocation",
        Edit(f"{POOL}.take_blocks", "popitem(last=False)", "popitem(last=True)"),
    ),
    _mutant(
        "frees-first-to-last",
        "The twin frees tables in table order.",
        "a finished sequence of two blocks, and a later one",
        Edit(f"{POOL}.release_table", "reversed(table)", "list(table)"),
        bug="A11",
    ),
    _mutant(
        "keeps-evicted-keys",
        "The twin still hits blocks that were taken for other content.",
        "evict, reuse, and submit the first prompt again",
        Edit(
            f"{POOL}.take_blocks",
            "            self._uncache(block_id)\n            self.num_evictions += 1\n",
            "            self.num_evictions += 1\n",
        ),
        bug="C12",
    ),
    _mutant(
        "copies-own-blocks",
        "The twin copies a block that nobody shares before it writes.",
        "a token that goes to a block which is there already",
        Edit(f"{POOL}.is_shared", "self.holders[block_id] > 1", "self.holders[block_id] > 0"),
    ),
    _mutant(
        "preempts-the-first",
        "The twin preempts the first running sequence.",
        "a preemption with two running",
        Edit(
            "pagetwin.simulator.preemption:_victim",
            "return (stuck or state.running)[-1]",
            "return stuck[-1] if stuck else state.running[0]",
        ),
    ),
    _mutant(
        "preempted-goes-last",
        "In the twin a preempted sequence goes behind those preempted before it.",
        "two preemptions before a return",
        Edit(
            f"{STATE}.stop",
            "front.insert(len(front) if makes_way else 0, seq)",
            "front.append(seq)",
        ),
        bug="D20",
    ),
    _mutant(
        "ignores-watermark",
        "The twin admits into the watermark.",
        "a watermark, and a pool that is nearly full",
        Edit(
            f"{STATE}.watermark",
            "return self.cache.watermark_blocks if self.running else 0",
            "return 0",
        ),
    ),
    _mutant(
        "admits-after-preemption",
        "The twin admits in a step that preempts.",
        "a preemption while others wait",
        Edit(
            "pagetwin.simulator.planning:plan_step",
            "    if not builder.preempted:  # P2.3\n        admit(builder)\n",
            "    admit(builder)\n",
        ),
    ),
    _mutant(
        "hits-the-whole-prompt",
        "The twin lets a hit cover the last token.",
        "a prompt of whole blocks, twice",
        Edit(
            "pagetwin.simulator.admission:full_hits",
            "most_full = (len(seq.token_ids) - 1) // block_size",
            "most_full = len(seq.token_ids) // block_size",
        ),
        bug="C09",
    ),
    _mutant(
        "ends-one-token-late",
        "The twin ends a sequence one token after max_tokens.",
        "an end by max_tokens",
        Edit(
            f"{STATE}.length_limit",
            "num_tokens - prompt >= max_tokens",
            "num_tokens - prompt > max_tokens",
        ),
        bug="E02",
    ),
    _mutant(
        "media-edge",
        "In the twin a picture touches the block behind its last token, too.",
        "a picture that ends on a block edge",
        Edit(
            "pagetwin.simulator.sequence:block_extras",
            "max(span.offset, start) < min(span.offset + span.length, end)",
            "max(span.offset, start + 1) < min(span.offset + span.length, end)",
        ),
        bug="C08",
    ),
    _mutant(
        "forgets-salt",
        "The twin's keys leave out the cache salt.",
        "one prompt under two salts",
        Edit(
            "pagetwin.simulator.sequence:block_extras",
            "if index == 0 and request.cache_salt is not None:",
            "if index < 0 and request.cache_salt is not None:",
        ),
        bug="C04",
    ),
    _mutant(
        "window-late",
        "The twin releases blocks outside the window one token late.",
        "a sequence longer than the window",
        Edit(
            "pagetwin.simulator.closing:_Closing._release_window",
            "seq.num_computed_tokens - window + 1",
            "seq.num_computed_tokens - window",
        ),
        bug="A08",
    ),
    _mutant(
        "awaits-nothing-in-flight",
        "The twin waits for no block of the step in flight.",
        "asynchronous steps, and a request whose next block is in flight",
        Edit(
            "pagetwin.simulator.under_way:BlocksUnderWay.__init__",
            "for flight in builder.state.flights:",
            "for flight in builder.state.flights[:0]:",
        ),
    ),
    _mutant(
        "awaits-the-ended",
        "The twin waits for blocks of a sequence that has ended in flight, though it caches none.",
        "an abort in flight of one that computes what another waits for",
        Edit(
            "pagetwin.simulator.under_way:BlocksUnderWay.__init__",
            'if seq.status != "ended":',
            "if True:",
        ),
    ),
    _mutant(
        "awaits-nothing-of-its-plan",
        "The twin waits for no block of the plan in the making.",
        "two requests with a common first block at once",
        Edit(
            "pagetwin.simulator.under_way:BlocksUnderWay.__contains__",
            "range(self._num_rows_seen, len(builder.rows))",
            "range(0)",
        ),
    ),
    _mutant(
        "awaits-later-blocks",
        "Of the blocks that a row fills the twin overlooks the first.",
        "two requests with a common first block at once",
        Edit(
            "pagetwin.simulator.under_way:BlocksUnderWay._add",
            "keys[first:end]",
            "keys[first + 1 : end]",
        ),
    ),
)
