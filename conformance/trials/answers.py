"""What clients get of the engine without a model: where answers end, whole and in pieces."""

from pagetwin.conformance.adapters.protocol import AdapterError
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.experiments.ends import Ends
from pagetwin.conformance.experiments.scenarios import crash
from pagetwin.conformance.experiments.stops import Stops
from pagetwin.conformance.experiments.streams import Streams
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.suite.experiment import Budget

EXPERIMENTS = (Ends, Stops, Streams)


def judge_answers(seed: int, index: int) -> list[Violation]:
    """One round of the experiment whose turn it is."""
    experiment = EXPERIMENTS[index % len(EXPERIMENTS)]()
    budget = Budget(float("inf"), max_examples=1)
    drawn = 100_000 * seed + index
    try:
        pieces = list(experiment.run(make_adapter("fingerprint:"), budget, drawn))
    except AdapterError as error:
        return [violation("life.ends", -1, str(error))]
    except Exception as error:
        # Whatever it is: the requests are valid ones.
        return [crash(error)]
    return [piece.violation for piece in pieces if piece.violation is not None]
