"""Mutants of beam searches: scores, ends, ties, and beams that give way."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

ENGINE = "pagetwin.engine."

SEARCHES = (
    Mutant(
        id="search.length-without-the-newest",
        bug="",
        statement=("A hypothesis is cut, and judged, one token late."),
        expects="search.definition",
        trigger="a search that comes to max_tokens",
        edits=(
            Edit(
                f"{ENGINE}beam_search:BeamSearch.select",
                ("length = len(self._beams[0]) + 1"),
                ("length = len(self._beams[0])"),
            ),
        ),
    ),
    Mutant(
        id="search.penalty-reversed",
        bug="",
        statement=("The length penalty multiplies."),
        expects="search.definition",
        trigger="hypotheses of two lengths",
        edits=(
            Edit(
                f"{ENGINE}beam_search:BeamSearch._normalised",
                ("length**self._params.length_penalty"),
                ("length**-self._params.length_penalty"),
            ),
        ),
    ),
    Mutant(
        id="search.any-end-counts",
        bug="",
        statement=("An end that is not among the best beam_width continuations is kept, too."),
        expects="search.definition",
        trigger="an end behind beam_width others",
        edits=(Edit(f"{ENGINE}beam_search:BeamSearch._finish", ("ends[:width]"), ("ends")),),
    ),
    Mutant(
        id="search.ties-by-token",
        bug="",
        statement=("Of equal scores the smaller token counts first, not the smaller beam."),
        expects="search.definition",
        trigger="equal scores of two beams",
        edits=(
            Edit(
                f"{ENGINE}beam_search:BeamSearch._best_continuations",
                ("(tokens, beams, -scores)"),
                ("(beams, tokens, -scores)"),
            ),
        ),
    ),
    Mutant(
        id="search.over-too-late",
        bug="",
        statement=("A search goes on though its best beam can only draw level."),
        expects="search.definition",
        trigger="a beam as good as the worst hypothesis",
        edits=(
            Edit(
                f"{ENGINE}beam_search:BeamSearch._is_over",
                ("<= self._finished[-1].score"),
                ("< self._finished[-1].score"),
            ),
        ),
    ),
    Mutant(
        id="search.over-too-early",
        bug="",
        statement=("A search is over when its best beam is worse than the best hypothesis."),
        expects="search.definition",
        trigger="a beam between the best and the worst hypothesis",
        edits=(
            Edit(
                f"{ENGINE}beam_search:BeamSearch._is_over",
                ("self._finished[-1].score"),
                ("self._finished[0].score"),
            ),
        ),
    ),
    Mutant(
        id="search.never-is-now",
        bug="",
        statement=('early_stopping="never" judges beams at their present length.'),
        expects="search.definition",
        trigger="a beam that could win at full length",
        edits=(
            Edit(
                f"{ENGINE}beam_search:BeamSearch._is_over", ("length = self._max_tokens"), ("pass")
            ),
        ),
    ),
    Mutant(
        id="search.score-of-the-first-beam",
        bug="",
        statement=("Every continuation adds to the first beam's score."),
        expects="search.definition",
        trigger="two beams of different scores",
        edits=(
            Edit(
                f"{ENGINE}beam_search:BeamSearch._best_continuations",
                ("logprobs + self._scores[beams]"),
                ("logprobs + self._scores[0]"),
            ),
        ),
    ),
    Mutant(
        id="search.as-they-ended",
        bug="",
        statement=("Hypotheses are kept in the order of their ends."),
        expects="search.definition",
        trigger="a later hypothesis that is better",
        edits=(
            Edit(
                f"{ENGINE}beam_search:BeamSearch._finish",
                ("    self._finished.sort(key=lambda hypothesis: -hypothesis.score)\n"),
                (""),
            ),
        ),
    ),
    Mutant(
        id="search.outgrows-the-model",
        bug="",
        statement=("A search does not know that max_model_len ends it."),
        expects="search.definition",
        trigger="max_tokens beyond the model's length",
        edits=(
            Edit(
                f"{ENGINE}live_request:LiveRequest.__init__",
                ("min(params.max_tokens, room)"),
                ("params.max_tokens"),
            ),
        ),
    ),
    Mutant(
        id="search.stale-report",
        bug="",
        statement=("What a beam said before it was preempted is used in its place."),
        expects="life.no-crash",
        trigger="a beam that reports, rests and is preempted",
        edits=(
            Edit(
                f"{ENGINE}output_processor:OutputProcessor._note_plan",
                ("live.beam_search.forget(index)"),
                ("pass"),
            ),
        ),
    ),
    Mutant(
        id="search.end-shown",
        bug="",
        statement=("The token that ends a hypothesis gives text."),
        expects="search.definition",
        trigger="a hypothesis that ends by EOS",
        edits=(
            Edit(
                f"{ENGINE}live_request:LiveRequest._beam_text",
                ("shown if keep_last else shown[:-1]"),
                ("shown"),
            ),
        ),
    ),
    Mutant(
        id="search.yields-to-nobody",
        bug="",
        statement=("A resting beam that was preempted comes back first."),
        expects="twin.lockstep",
        trigger="a resting beam that makes room for its sibling",
        edits=(
            Edit(
                f"{ENGINE}queues:AdmissionQueue.add_preempted",
                ("self._num_tickets if yielding else -self._num_tickets"),
                ("-self._num_tickets"),
            ),
        ),
    ),
)
