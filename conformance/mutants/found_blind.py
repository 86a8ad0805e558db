"""Mutants that the suite once let live: rare meetings of names, pictures, drafts and parameters."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

ENGINE = "pagetwin.engine."

FOUND_BLIND = (
    Mutant(
        id="blind.name-used-in-flight",
        bug="",
        statement=("A name may be used again while a step in flight still holds its blocks."),
        expects="twin.lockstep",
        trigger="a submission right after an abort in flight",
        edits=(
            Edit(
                f"{ENGINE}scheduler_state:SchedulerState.is_id_in_use",
                (
                    "return request_id in self.groups or any(\n"
                    "        seq.group.request.request_id == request_id for seq in "
                    "self.deferred.values()\n"
                    "    )"
                ),
                ("return request_id in self.groups"),
            ),
        ),
    ),
    Mutant(
        id="blind.old-entry-of-a-name",
        bug="",
        statement=("An entry of a request that was aborted stands for the next one of that name."),
        expects="life.no-crash",
        trigger="an abort and a submission while others wait in front",
        edits=(
            Edit(
                f"{ENGINE}queues:AdmissionQueue.head",
                ("if self._tickets.get(seq.seq_id) == ticket:"),
                ("if seq.seq_id in self._tickets:"),
            ),
        ),
    ),
    Mutant(
        id="blind.first-picture-only",
        bug="",
        statement=("Of several pictures in a block the first alone goes into its key."),
        expects="iso.history-independence",
        trigger="two pictures in one block",
        edits=(
            Edit(
                f"{ENGINE}prefix_keys:block_extras",
                ('extras.append(("media_offset", span.offset - start))'),
                ('extras.append(("media_offset", span.offset - start))\n            break'),
            ),
        ),
    ),
    Mutant(
        id="blind.later-pictures-of-block-1",
        bug="",
        statement=("Pictures beyond the second block go into no key."),
        expects="twin.lockstep",
        trigger="a picture in the third block",
        edits=(
            Edit(f"{ENGINE}prefix_keys:KeyChain.__init__", ("None if request.media else "), ("")),
        ),
    ),
    Mutant(
        id="blind.failed-beam-stays-in-line",
        bug="",
        statement=("A beam that waits when its search fails stays in line."),
        expects="twin.lockstep",
        trigger="a row without a token while a sibling waits",
        edits=(
            Edit(
                f"{ENGINE}closing:Closer._fail_beams",
                ("if beam.status is not SequenceStatus.RUNNING:"),
                ("if False:"),
            ),
        ),
    ),
    Mutant(
        id="blind.resting-on-paper",
        bug="",
        statement=("A beam that this very step has planned counts as resting."),
        expects="twin.lockstep",
        trigger="a search short of blocks",
        edits=(
            Edit(
                f"{ENGINE}planning:Planner._is_resting",
                ("and seq.last_step != self._state.next_step"),
                (""),
            ),
        ),
    ),
    Mutant(
        id="blind.fork-offers-again",
        bug="",
        statement=("A fork offers to the cache what its parent has offered already."),
        expects="twin.lockstep",
        trigger="a block whose content was cached elsewhere and evicted",
        edits=(
            Edit(
                f"{ENGINE}block_manager:BlockManager.fork",
                ("parent.num_released, parent.num_marked"),
                ("parent.num_released, 0"),
            ),
        ),
    ),
    Mutant(
        id="blind.one-pin-for-two",
        bug="",
        statement=("A source that two copies pin is released once."),
        expects="kv.conservation",
        trigger="two partial hits of one block in one step",
        edits=(
            Edit(
                f"{ENGINE}block_manager:BlockManager.unpin",
                ("        del self._pins[block_id]\n    self.pool.release(block_id)"),
                ("        del self._pins[block_id]\n        self.pool.release(block_id)"),
            ),
        ),
    ),
    Mutant(
        id="blind.top-p-first",
        bug="",
        statement=("top_p is applied before top_k."),
        expects="samp.support",
        trigger="a request with both",
        edits=(
            Edit(
                f"{ENGINE}logits:truncate",
                (
                    "    _narrow(logits, _top_k, {i: p.top_k for i, p in enumerate(params) "
                    "if p.top_k > 0})\n"
                    "    _narrow(logits, _top_p, {i: p.top_p for i, p in enumerate(params) "
                    "if p.top_p < 1.0})"
                ),
                (
                    "    _narrow(logits, _top_p, {i: p.top_p for i, p in enumerate(params) "
                    "if p.top_p < 1.0})\n"
                    "    _narrow(logits, _top_k, {i: p.top_k for i, p in enumerate(params) "
                    "if p.top_k > 0})"
                ),
            ),
        ),
    ),
    Mutant(
        id="blind.bias-last",
        bug="",
        statement=("logit_bias is added after the repetition penalty."),
        expects="samp.support",
        trigger="a bias on a token that stands in the text",
        edits=(
            Edit(
                f"{ENGINE}logits:adjust",
                ("    _add_bias(logits, rows)\n    _penalise_repetition(logits, rows)\n"),
                ("    _penalise_repetition(logits, rows)\n    _add_bias(logits, rows)\n"),
            ),
        ),
    ),
    Mutant(
        id="blind.last-forced-token-free",
        bug="",
        statement=("The last forced token is not forced."),
        expects="samp.support",
        trigger="forced tokens",
        edits=(
            Edit(
                f"{ENGINE}sampler:_forced_token",
                ("forced[place] if place < len(forced)"),
                ("forced[place] if place < len(forced) - 1"),
            ),
        ),
    ),
    Mutant(
        id="blind.zeros-of-two-signs",
        bug="",
        statement=("Of equal logits 0.0 and -0.0 the sign decides, not the token."),
        expects="samp.logprobs",
        trigger="zeros of both signs",
        edits=(Edit(f"{ENGINE}token_order:order_keys", ("(logits + 0.0)"), ("logits")),),
    ),
    Mutant(
        id="blind.one-bad-word",
        bug="",
        statement=("Of several bad words that are about to end one is banned."),
        expects="samp.support",
        trigger="two bad words with a common beginning",
        edits=(
            Edit(
                f"{ENGINE}logits:_banned",
                ("            yield last\n"),
                ("            yield last\n            break\n"),
            ),
        ),
    ),
    Mutant(
        id="blind.named-tokens-dropped",
        bug="",
        statement=("Named tokens' log-probabilities are cut to as many as the first ones."),
        expects="samp.logprobs",
        trigger="named tokens",
        edits=(
            Edit(
                f"{ENGINE}sampler:_report_singles",
                ("params.logprob_token_ids or ()"),
                ("(params.logprob_token_ids or ())[:num_top]"),
            ),
        ),
    ),
    Mutant(
        id="blind.bytes-shown-too-soon",
        bug="",
        statement="Bytes are shown as characters before their run has ended.",
        expects="text.decoded",
        trigger="a tokenizer that falls back to bytes, and a run that turns out to be no character",
        edits=(
            Edit(
                f"{ENGINE}detokenizer:WindowDetokenizer.append",
                "        or self._tokenizer.may_change(token_id)\n",
                "",
            ),
        ),
    ),
)
