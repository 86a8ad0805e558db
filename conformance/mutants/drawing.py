"""Mutants of how tokens are drawn: what is kept, at which temperature, by which noise."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

LOGITS = "pagetwin.engine.logits"
SAMPLER = "pagetwin.engine.sampler:Sampler"
NOISE = "pagetwin.engine.noise"

DRAWING = (
    Mutant(
        id="samp.top-k-ties-dropped",
        bug="H11",
        statement="Tokens that tie with the k-th are removed.",
        expects="samp.support",
        trigger="a tie at the edge of top-k",
        edits=(
            Edit(
                f"{LOGITS}:_top_k",
                "return logits >= largest.gather(1, index)",
                "return logits > largest.gather(1, index) - (index == 0).float()",
            ),
        ),
    ),
    Mutant(
        id="samp.top-k-one-more",
        bug="H11",
        statement="Top-k keeps k + 1 tokens.",
        expects="samp.support",
        trigger="top_k",
        edits=(
            Edit(
                f"{LOGITS}:_top_k",
                "ks = [min(k, vocab_size) for k in top_ks]",
                "ks = [min(k + 1, vocab_size) for k in top_ks]",
            ),
        ),
    ),
    Mutant(
        id="samp.top-p-without-crossing",
        bug="H11",
        statement="The token that crosses top_p is left out.",
        expects="samp.coupled",
        trigger="top_p",
        edits=(
            Edit(
                f"{LOGITS}:_top_p",
                "crossing = ordered.gather(1, below.clamp_(max=logits.shape[-1] - 1))",
                "crossing = ordered.gather(1, (below - 1).clamp_(min=0))",
            ),
        ),
    ),
    Mutant(
        id="samp.temperature-last",
        bug="",
        statement="Temperature is applied after top-k, top-p and min-p.",
        expects="samp.support",
        trigger="top_p or min_p, and a temperature other than 1",
        edits=(
            Edit(
                f"{LOGITS}:truncate",
                "    if any(p.temperature != 1.0 for p in params):\n"
                "        logits.div_(_column(logits, [p.temperature for p in params]))\n",
                "",
            ),
            Edit(
                f"{LOGITS}:truncate",
                "    _narrow(logits, _top_p, {i: p.top_p for i, p in enumerate(params) "
                "if p.top_p < 1.0})\n",
                "    _narrow(logits, _top_p, {i: p.top_p for i, p in enumerate(params) "
                "if p.top_p < 1.0})\n"
                "    logits.div_(_column(logits, [p.temperature for p in params]))\n",
            ),
        ),
    ),
    Mutant(
        id="samp.temperature-of-first-row",
        bug="H05",
        statement="Every row of a batch gets the first row's temperature.",
        expects="iso.neighbour",
        trigger="two temperatures in one batch",
        edits=(
            Edit(
                f"{LOGITS}:truncate",
                "logits.div_(_column(logits, [p.temperature for p in params]))",
                "logits.div_(params[0].temperature)",
            ),
        ),
    ),
    Mutant(
        id="samp.min-p-of-mass",
        bug="",
        statement="min_p is compared with the probability, not with its share of the largest.",
        expects="samp.coupled",
        trigger="min_p",
        edits=(
            Edit(
                f"{LOGITS}:_min_p",
                "logits.amax(dim=-1, keepdim=True) + floor",
                "logits.logsumexp(dim=-1, keepdim=True) + floor",
            ),
        ),
    ),
    Mutant(
        id="samp.noise-restarts",
        bug="H01",
        statement="The noise of a token is keyed by its place among the output tokens alone.",
        expects="samp.coupled",
        trigger="any draw",
        edits=(
            Edit(
                f"{SAMPLER}._draw",
                "position=row.request.num_prompt_tokens + len(row.output_token_ids)",
                "position=len(row.output_token_ids)",
            ),
        ),
    ),
    Mutant(
        id="samp.noise-of-a-step-ago",
        bug="H01",
        statement="The noise stream does not advance with the tokens.",
        expects="samp.coupled",
        trigger="a second token",
        edits=(
            Edit(
                f"{SAMPLER}._draw",
                "position=row.request.num_prompt_tokens + len(row.output_token_ids)",
                "position=row.request.num_prompt_tokens",
            ),
        ),
    ),
    Mutant(
        id="samp.samples-share-noise",
        bug="L11",
        statement="All samples of a request draw the same noise.",
        expects="samp.coupled",
        trigger="n > 1",
        edits=(Edit(f"{SAMPLER}._draw", "sample_index=row.sample_index", "sample_index=0"),),
    ),
    Mutant(
        id="samp.seed-by-row",
        bug="H03",
        statement="Noise depends on the row in the batch.",
        expects="samp.coupled",
        trigger="two random rows",
        edits=(
            Edit(
                f"{SAMPLER}._scores",
                "draws = [self._draw(row) for row in rows]",
                "draws = [self._draw(row)._replace(stream=i) for i, row in enumerate(rows)]",
            ),
        ),
    ),
    Mutant(
        id="samp.seed-cut",
        bug="C02",
        statement="Only the low 32 bits of a seed count.",
        expects="samp.coupled",
        trigger="a seed of more than 32 bits",
        edits=(Edit(f"{NOISE}:draw_for", "(key >> 32) & _WORD", "0"),),
    ),
    Mutant(
        id="samp.unseeded-alike",
        bug="H03",
        statement="Requests without a seed all draw the same noise.",
        expects="samp.coupled",
        trigger="two requests without a seed",
        edits=(
            Edit(
                f"{NOISE}:draw_for",
                'f"{engine_seed}:{request_id}"',
                'f"{engine_seed}"',
            ),
        ),
    ),
)
