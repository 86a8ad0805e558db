"""Mutants of what is done to logits before, and told of them after: penalties, bans, logprobs."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

LOGITS = "pagetwin.engine.logits"
SAMPLER = "pagetwin.engine.sampler:Sampler"
NOISE = "pagetwin.engine.noise"
LOGPROBS = "pagetwin.engine.logprobs"

PROCESSING = (
    Mutant(
        id="samp.penalty-counts-prompt",
        bug="H04",
        statement="Frequency and presence penalties count prompt tokens, too.",
        expects="samp.penalties",
        trigger="a presence penalty, and a prompt",
        edits=(
            Edit(
                f"{LOGITS}:_penalise_output",
                "np.unique(_ids(row.output_token_ids), return_counts=True)",
                "np.unique(_ids([*row.request.prompt_token_ids, *row.output_token_ids]), "
                "return_counts=True)",
            ),
        ),
    ),
    Mutant(
        id="samp.repetition-without-prompt",
        bug="H04",
        statement="The repetition penalty does not see the prompt.",
        expects="samp.coupled",
        trigger="a repetition penalty at the first token",
        edits=(
            Edit(
                f"{LOGITS}:_penalise_repetition",
                "np.union1d(_ids(row.request.prompt_token_ids), _ids(row.output_token_ids))",
                "np.unique(_ids(row.output_token_ids))",
            ),
        ),
    ),
    Mutant(
        id="samp.repetition-always-divides",
        bug="H04",
        statement="The repetition penalty divides negative logits, too, and so favours repetition.",
        expects="samp.penalties",
        trigger="a repetition penalty, negative logits",
        edits=(
            Edit(
                f"{LOGITS}:_penalise_repetition",
                "torch.where(values > 0, values / penalties, values * penalties)",
                "values / penalties",
            ),
        ),
    ),
    Mutant(
        id="samp.penalties-misaligned",
        bug="H05",
        statement="Rows before the first penalised one are left out of the rows' numbers.",
        expects="iso.neighbour",
        trigger="a plain row before a penalised one",
        edits=(
            Edit(
                f"{LOGITS}:_penalise_output",
                "pieces.append((i, seen,",
                "pieces.append((len(pieces), seen,",
            ),
        ),
    ),
    Mutant(
        id="samp.penalty-window",
        bug="H07",
        statement="Penalties look at the first four output tokens, not at all.",
        expects="samp.penalties",
        trigger="more than four output tokens",
        edits=(
            Edit(
                f"{LOGITS}:_penalise_output",
                "np.unique(_ids(row.output_token_ids), return_counts=True)",
                "np.unique(_ids(row.output_token_ids[:4]), return_counts=True)",
            ),
        ),
    ),
    Mutant(
        id="samp.frequency-once",
        bug="H04",
        statement="The frequency penalty counts each token once.",
        expects="samp.penalties",
        trigger="a frequency penalty, and a token that came twice",
        edits=(
            Edit(
                f"{LOGITS}:_penalise_output",
                "counts * params.frequency_penalty",
                "np.minimum(counts, 1) * params.frequency_penalty",
            ),
        ),
    ),
    Mutant(
        id="samp.min-tokens-late",
        bug="H08",
        statement="EOS stays banned for one token after min_tokens.",
        expects="samp.penalties",
        trigger="exactly min_tokens, EOS likeliest",
        edits=(
            Edit(
                f"{LOGITS}:_banned",
                "if len(row.output_token_ids) < row.request.sampling_params.min_tokens:",
                "if len(row.output_token_ids) < row.request.sampling_params.min_tokens + 1:",
            ),
        ),
    ),
    Mutant(
        id="samp.min-tokens-first-eos",
        bug="H09",
        statement="Before min_tokens only the first of the ending tokens is banned.",
        expects="samp.penalties",
        trigger="two EOS ids, or a stop id",
        edits=(
            Edit(
                f"{LOGITS}:_banned",
                "yield from sorted(ending_token_ids(row.request))",
                "yield from sorted(ending_token_ids(row.request))[:1]",
            ),
        ),
    ),
    Mutant(
        id="samp.bad-words-in-output-only",
        bug="",
        statement="A bad word that begins in the prompt is not seen.",
        expects="samp.penalties",
        trigger="a bad word across the end of the prompt",
        edits=(Edit(f"{LOGITS}:_ends_with", "    if missing:\n", "    if missing < 0:\n"),),
    ),
    Mutant(
        id="samp.allowed-leaks",
        bug="H18",
        statement="A row's allowed ids forbid all others in every row.",
        expects="iso.neighbour",
        trigger="a constrained row beside a free one",
        edits=(
            Edit(
                f"{LOGITS}:_keep_allowed",
                "            logits[i] = -torch.inf\n",
                "            logits[: i + 1] = -torch.inf\n",
            ),
        ),
    ),
    Mutant(
        id="samp.bias-on-first-row",
        bug="E11",
        statement="A logit bias goes to the row of its place among the biased ones.",
        expects="samp.penalties",
        trigger="a plain row before a biased one",
        edits=(
            Edit(
                f"{LOGITS}:_add_bias",
                "pieces.append((i, ",
                "pieces.append((len(pieces), ",
            ),
        ),
    ),
    Mutant(
        id="samp.padding-wins",
        bug="K04",
        statement="Padding columns of the logits take part in the choice.",
        expects="life.no-crash",
        trigger="a padded head, all logits negative",
        edits=(
            Edit(
                f"{SAMPLER}._used_columns",
                "return logits[:, : self.vocab_size].float()",
                "return logits.float()",
            ),
        ),
    ),
    Mutant(
        id="samp.half-precision",
        bug="M03",
        statement="Logits are rounded to bfloat16 before the choice.",
        expects="samp.penalties",
        trigger="two logits less than a bfloat16 step apart",
        edits=(
            Edit(
                f"{SAMPLER}._used_columns",
                "return logits[:, : self.vocab_size].float()",
                "return logits[:, : self.vocab_size].bfloat16().float()",
            ),
        ),
    ),
    Mutant(
        id="samp.ties-to-last",
        bug="",
        statement="Of equal logits the highest token id is the greedy choice.",
        expects="samp.penalties",
        trigger="two equal largest logits",
        edits=(
            Edit(
                "pagetwin.engine.sampler:_largest",
                "    finite = torch.isfinite(peaks).tolist()\n",
                "    tokens = scores.shape[-1] - 1 - scores.flip(-1).max(dim=-1).indices\n"
                "    finite = torch.isfinite(peaks).tolist()\n",
            ),
        ),
    ),
    Mutant(
        id="samp.logprobs-of-adjusted",
        bug="H15",
        statement="Log-probabilities are those of penalised and scaled logits.",
        expects="samp.logprobs",
        trigger="a penalty or a temperature, and log-probabilities",
        edits=(
            Edit(
                f"{SAMPLER}._choose",
                "scores = self._scores(logits[index], [rows[i] for i in index], "
                "is_random=is_random)",
                "logits[index] = adjusted = logits[index] * 1.125\n"
                "            scores = self._scores(adjusted.clone(), [rows[i] for i in index], "
                "is_random=is_random)",
            ),
        ),
    ),
    Mutant(
        id="samp.logprobs-off-by-one-row",
        bug="H15",
        statement="Reported log-probabilities are of the row before.",
        expects="samp.logprobs",
        trigger="two rows with log-probabilities",
        edits=(
            Edit(
                "pagetwin.engine.sampler:_report_singles",
                "logits[[i for i, _, _, _ in asking]]",
                "logits[[max(0, i - 1) for i, _, _, _ in asking]]",
            ),
        ),
    ),
    Mutant(
        id="samp.logprobs-zero-is-off",
        bug="L14",
        statement="logprobs=0 is taken for none.",
        expects="samp.logprobs",
        trigger="logprobs=0",
        edits=(
            Edit(
                "pagetwin.engine.sampler:_report_singles",
                "if (num_top := rows[i].request.sampling_params.num_logprobs) is not None",
                "if (num_top := rows[i].request.sampling_params.num_logprobs)",
            ),
        ),
    ),
    Mutant(
        id="samp.ranks-count-ties",
        bug="",
        statement="A rank counts the tokens that are equal, too.",
        expects="samp.logprobs",
        trigger="log-probabilities of a token with equals",
        edits=(
            Edit(
                f"{LOGPROBS}:report_logprobs",
                "((keys > keys.gather(1, index)).sum(dim=-1) + 1).tolist()",
                "((logits >= logits.gather(1, index)).sum(dim=-1)).tolist()",
            ),
        ),
    ),
    Mutant(
        id="samp.broken-row-stops-all",
        bug="",
        statement="One row whose logits are no numbers leaves every row without a token.",
        expects="iso.neighbour",
        trigger="NaN in one row of two",
        edits=(
            Edit(
                f"{SAMPLER}.sample",
                "    for i in broken:\n",
                "    broken = list(range(len(rows))) if broken else []\n    for i in broken:\n",
            ),
        ),
    ),
    Mutant(
        id="samp.sparse-noise-shifted",
        bug="H03",
        statement="Where few tokens are kept, their noise is that of their rank among the kept.",
        expects="samp.coupled",
        trigger="a small top_k in a large vocabulary",
        edits=(
            Edit(
                f"{NOISE}:gumbel_noise_at",
                "words.gather(1, (token_ids % 4)[:, None])",
                "words.gather(1, (token_ids % 4 * 0)[:, None])",
            ),
        ),
    ),
)
