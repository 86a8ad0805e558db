"""Mutants of what clients see: decoding, stop strings, streaming, reasons."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

DETOKENIZER = "pagetwin.engine.detokenizer"
LIVE = "pagetwin.engine.live_request"
OUTPUT = "pagetwin.engine.output_processor:OutputProcessor"

TEXT = (
    Mutant(
        id="text.per-token",
        bug="L01",
        statement="Each token's bytes are decoded alone, so split characters become U+FFFD.",
        expects="text.decoded",
        trigger="a character of two tokens",
        edits=(
            Edit(
                f"{DETOKENIZER}:ByteDetokenizer.append",
                "return self._decoder.decode(data)",
                'return data.decode(errors="replace")',
            ),
        ),
    ),
    Mutant(
        id="text.stop-seen-a-token-late",
        bug="",
        statement="A stop string is looked for in the text before the newest token.",
        expects="life.stop-strings",
        trigger="a stop string",
        edits=(
            Edit(
                "pagetwin.engine.detokenizer:TextStream.append",
                "self._stops.find(self.text, checked=checked)",
                "self._stops.find(self.text[:checked])",
            ),
        ),
        also_tried=("answers",),
    ),
    Mutant(
        id="text.cumulative-is-delta",
        bug="",
        statement="Every output has only the newest text, whatever was asked for.",
        expects="life.streams-add-up",
        trigger="a cumulative stream of more than one piece",
        edits=(
            Edit(
                "pagetwin.engine.live_request:_Sample.output",
                "self.num_sent_chars if delta else 0",
                "self.num_sent_chars",
            ),
        ),
        also_tried=("answers",),
    ),
    Mutant(
        id="text.spaces-lost",
        bug="L03",
        statement="A token is decoded without those before it, and its leading space is dropped.",
        expects="text.decoded",
        trigger="a token that begins with a space, with a tokenizer that strips the first one",
        edits=(
            Edit(
                f"{DETOKENIZER}:WindowDetokenizer.append",
                "self._window = self._window[self._num_shown :]",
                "self._window = []",
            ),
            Edit(
                f"{DETOKENIZER}:WindowDetokenizer.append",
                "self._text = self._shown_text = self._decode(self._window)",
                'self._text = self._shown_text = ""',
            ),
        ),
    ),
    Mutant(
        id="text.unfinished-shown",
        bug="L01",
        statement="Text that ends inside a character is shown at once, and corrected by nobody.",
        expects="text.decoded",
        trigger="a character of two tokens, with any tokenizer not made of bytes",
        edits=(
            Edit(
                f"{DETOKENIZER}:WindowDetokenizer.append",
                "        or self._text.endswith(REPLACEMENT)\n",
                "",
            ),
        ),
    ),
    Mutant(
        id="text.endswith",
        bug="L04",
        statement="A stop string is found only where a token ends with it.",
        expects="text.finish-reason",
        trigger="a stop string that ends inside a token",
        edits=(
            Edit(
                f"{DETOKENIZER}:StopStrings.find",
                "        if begin >= 0:\n",
                "        if begin >= 0 and text.endswith(stop):\n",
            ),
        ),
    ),
    Mutant(
        id="text.search-starts-late",
        bug="L04",
        statement="The search does not look at characters before the newest token.",
        expects="text.finish-reason",
        trigger="a stop string over two tokens",
        edits=(
            Edit(
                f"{DETOKENIZER}:StopStrings.find",
                "max(0, checked - len(stop) + 1)",
                "checked",
            ),
        ),
    ),
    Mutant(
        id="text.nothing-held-back",
        bug="L05",
        statement="The beginning of a stop string is shown before it is known not to be one.",
        expects="text.decoded",
        trigger="streaming, a stop string over two tokens",
        edits=(
            Edit(
                f"{DETOKENIZER}:TextStream.append",
                "self.num_visible = len(self.text) - held",
                "self.num_visible = len(self.text)",
            ),
        ),
    ),
    Mutant(
        id="text.holds-one-character",
        bug="L08",
        statement="Of the beginning of a stop string one character is held back at most.",
        expects="text.decoded",
        trigger="streaming, a stop string of three characters",
        edits=(
            Edit(
                f"{DETOKENIZER}:StopStrings.num_held_back",
                "range(min(self._longest, len(text)), 0, -1)",
                "range(min(self._longest, len(text), 1), 0, -1)",
            ),
        ),
    ),
    Mutant(
        id="text.end-withheld",
        bug="L06",
        statement="What is held back at the end of a text is never shown.",
        expects="text.decoded",
        trigger="an end by length with the beginning of a stop string",
        edits=(
            Edit(
                f"{DETOKENIZER}:TextStream.finish",
                "    self.num_visible = len(self.text)\n",
                "    self.num_visible = max(self.num_visible, len(self.text) * "
                "(self._stops is None))\n",
            ),
        ),
    ),
    Mutant(
        id="text.unfinished-withheld",
        bug="L06",
        statement="An unfinished character at the end is not shown.",
        expects="text.decoded",
        trigger="an end by length inside a character",
        edits=(
            Edit(
                f"{DETOKENIZER}:TextStream.finish",
                "        self.text += self._detokenizer.flush()\n",
                "        self._detokenizer.flush()\n",
            ),
        ),
    ),
    Mutant(
        id="text.sent-twice",
        bug="L07",
        statement="The offset of what was sent counts tokens' text, not what was visible of it.",
        expects="text.decoded",
        trigger="a near miss of a stop string while streaming",
        edits=(
            Edit(
                f"{LIVE}:_Sample.output",
                "self.num_sent_chars = self.stream.num_visible",
                "self.num_sent_chars = min(self.stream.num_visible, first_char + 1)",
            ),
        ),
    ),
    Mutant(
        id="text.stop-shown",
        bug="L04",
        statement="The stop string stays in the text.",
        expects="text.decoded",
        trigger="a stop string",
        edits=(
            Edit(
                f"{DETOKENIZER}:TextStream.append",
                "match.end if self._include_stop else match.begin",
                "match.end",
            ),
        ),
    ),
    Mutant(
        id="text.last-stop-wins",
        bug="L04",
        statement="Of two stop strings the one that ends last cuts the text.",
        expects="text.finish-reason",
        trigger="two stop strings in one token's text",
        edits=(
            Edit(
                f"{DETOKENIZER}:StopStrings.find",
                "return min(matches, default=None)",
                "return max(matches, default=None)",
            ),
        ),
    ),
    Mutant(
        id="text.stop-before-min-tokens",
        bug="H08",
        statement="A stop string counts before min_tokens are there.",
        expects="text.finish-reason",
        trigger="a stop string within min_tokens",
        edits=(
            Edit(
                f"{LIVE}:LiveRequest.append",
                "return sample.stream.append(token_id, check_stops=may_stop)",
                "return sample.stream.append(token_id)",
            ),
        ),
    ),
    Mutant(
        id="text.eos-shown",
        bug="",
        statement="EOS gives text where special tokens are shown.",
        expects="text.decoded",
        trigger="EOS, skip_special_tokens off",
        edits=(
            Edit(
                f"{LIVE}:LiveRequest.append",
                "        return None\n    if may_stop and token_id in params.stop_token_ids:",
                "        sample.stream.append(token_id, check_stops=False)\n"
                "        return None\n    if may_stop and token_id in params.stop_token_ids:",
            ),
        ),
    ),
    Mutant(
        id="text.samples-mixed",
        bug="L11",
        statement="All samples of a request are given to the first.",
        expects="text.finish-reason",
        trigger="n > 1",
        edits=(
            Edit(
                f"{OUTPUT}.process",
                "sample = live.samples[index]",
                "sample = live.samples[0]",
            ),
        ),
    ),
    Mutant(
        id="text.late-token-shown",
        bug="D18",
        statement="A token that arrives after the end of its sample is shown.",
        expects="text.finish-reason",
        trigger="asynchronous steps, an end that nobody foresaw",
        edits=(
            Edit(
                f"{OUTPUT}.process",
                "        if sample.finished is not None:\n            continue\n",
                "",
            ),
        ),
    ),
    Mutant(
        id="text.delta-repeats-tokens",
        bug="L07",
        statement="A delta holds all tokens, not the new ones.",
        expects="text.finish-reason",
        trigger="streaming of two tokens",
        edits=(
            Edit(
                f"{LIVE}:_Sample.output",
                "tuple(self.token_ids[first_token:])",
                "tuple(self.token_ids)",
            ),
        ),
    ),
    Mutant(
        id="text.end-not-sent",
        bug="L10",
        statement="A sample that ends without a new token never tells that it has.",
        expects="text.finish-reason",
        trigger="streaming at intervals of three tokens",
        edits=(
            Edit(
                f"{LIVE}:LiveRequest._completions",
                "changed = sample.num_unsent_tokens or "
                "(sample.finished and not sample.sent_finish)",
                "changed = sample.num_unsent_tokens > 1",
            ),
        ),
    ),
    Mutant(
        id="text.ids-not-released",
        bug="E17",
        statement="Names of ended requests stay in the map of sequences, with their old index.",
        expects="life.no-crash",
        trigger="a second call with the same names",
        edits=(
            Edit(
                f"{OUTPUT}._end",
                "live = self._live.pop(request_id)",
                "live = self._live[request_id]",
            ),
        ),
    ),
    Mutant(
        id="text.abort-is-stop",
        bug="L10",
        statement="An aborted sample is reported as stopped.",
        expects="text.finish-reason",
        trigger="an abort",
        edits=(
            Edit(
                f"{OUTPUT}.abort",
                '_cut_short(request_id, "abort")',
                '_cut_short(request_id, "stop")',
            ),
        ),
    ),
)
