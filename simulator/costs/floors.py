"""What no term can be under: the roofline of a datasheet, term by term."""

from dataclasses import dataclass

from pagetwin.simulator.clock import to_seconds
from pagetwin.simulator.costs.roofline import Roofline

USUAL_SHARE = 0.6
"""What large products and long attention usually reach of a datasheet's peak."""


@dataclass(frozen=True)
class Floors:
    """Seconds; zeros where there is no datasheet."""

    per_token_s: float = 0.0
    per_pair_s: float = 0.0
    per_context_s: float = 0.0

    @classmethod
    def of(cls, roofline: Roofline | None) -> "Floors":
        if roofline is None:
            return cls()
        return cls(
            per_token_s=2 * roofline.shape.token_parameters / roofline.gpu.flops(roofline.dtype),
            per_pair_s=to_seconds(roofline.pair_ticks),
            per_context_s=to_seconds(roofline.context_ticks),
        )
