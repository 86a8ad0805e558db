"""All mutants, in the order of their families."""

from pagetwin.conformance.mutants.allocation import ALLOCATION
from pagetwin.conformance.mutants.attention import ATTENTION
from pagetwin.conformance.mutants.batch import BATCH_ROWS
from pagetwin.conformance.mutants.device_side import DEVICE
from pagetwin.conformance.mutants.drawing import DRAWING
from pagetwin.conformance.mutants.faults import FAULTS
from pagetwin.conformance.mutants.forced_preemption import FORCED_PREEMPTION
from pagetwin.conformance.mutants.found_blind import FOUND_BLIND
from pagetwin.conformance.mutants.lifecycle import LIFECYCLE
from pagetwin.conformance.mutants.logits import PROCESSING
from pagetwin.conformance.mutants.memory_moves import MEMORY_MOVES
from pagetwin.conformance.mutants.models import MODELS
from pagetwin.conformance.mutants.mutant import Mutant
from pagetwin.conformance.mutants.preemption import PREEMPTION
from pagetwin.conformance.mutants.prefix_cache import PREFIX_CACHE
from pagetwin.conformance.mutants.scheduling import SCHEDULING
from pagetwin.conformance.mutants.searches import SEARCHES
from pagetwin.conformance.mutants.sharing import SHARING
from pagetwin.conformance.mutants.text import TEXT
from pagetwin.conformance.mutants.told import TOLD
from pagetwin.conformance.mutants.transformers_batching import TRANSFORMERS_BATCHING
from pagetwin.conformance.mutants.twin import TWIN
from pagetwin.conformance.mutants.waiting import WAITING

MUTANTS: tuple[Mutant, ...] = (
    *ALLOCATION,
    *SHARING,
    *PREFIX_CACHE,
    *PREEMPTION,
    *FORCED_PREEMPTION,
    *SCHEDULING,
    *WAITING,
    *LIFECYCLE,
    *BATCH_ROWS,
    *ATTENTION,
    *MEMORY_MOVES,
    *DRAWING,
    *PROCESSING,
    *TEXT,
    *FAULTS,
    *TOLD,
    *SEARCHES,
    *MODELS,
    *DEVICE,
    *FOUND_BLIND,
    *TWIN,
    *TRANSFORMERS_BATCHING,
)
