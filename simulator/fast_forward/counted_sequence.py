"""Decides nothing: what is remembered of a request that is counted."""

from pagetwin.engine.request import Request
from pagetwin.simulator.fast_forward.counted_pool import Opening
from pagetwin.simulator.fast_forward.ending import Ending


class CountedSequence:
    """A request while it lives."""

    __slots__ = (
        "block_table",
        "ending",
        "ends_at",
        "first_scheduled",
        "first_token",
        "key",
        "num_computed_tokens",
        "num_output_tokens",
        "num_prompt_tokens",
        "number",
        "opening",
        "request",
        "submitted",
        "take_place",
    )

    def __init__(
        self, request: Request, number: int, submitted: int, ending: Ending, opening: Opening | None
    ) -> None:
        self.request = request
        self.number = number
        """In the order of submission."""
        self.submitted = submitted
        """Tick of its submission."""
        self.key = (request.arrival_s, request.request_id)
        self.opening = opening
        """None without prefix caching."""
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.num_output_tokens, self.ending = ending
        """Tokens that it will have given when it ends, and why it does."""
        self.num_computed_tokens = 0
        """While it prefills."""
        self.block_table: list[int] = []
        self.first_scheduled: int | None = None
        self.first_token = 0
        self.ends_at = 0
        """The number of steps after which it ends; 0 while its prompt is not computed."""
        self.take_place = 0
        """The steps, modulo the block size, in which it takes a block while it decodes."""

    def num_outputs(self, num_steps: int) -> int:
        """Tokens that it has given after that many steps."""
        return num_steps - self.ends_at + self.num_output_tokens if self.ends_at else 0

    def num_computed(self, num_steps: int) -> int:
        """Tokens whose K/V its blocks hold after that many steps."""
        if not self.ends_at:
            return self.num_computed_tokens
        return self.num_prompt_tokens + self.num_outputs(num_steps) - 1
