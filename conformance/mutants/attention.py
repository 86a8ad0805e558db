"""Mutants of attention: what a token sees, and how much of it."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

TORCH = "pagetwin.engine.attention.torch_backend"
TILES = "pagetwin.engine.attention.tiles:TilePlanner"

ATTENTION = (
    Mutant(
        id="attn.scale-ignored",
        bug="",
        statement="Scores are scaled by 1 / sqrt(head_size), whatever the model says.",
        expects="num.attn",
        trigger="a scale of its own",
        edits=(
            Edit(
                f"{TORCH}:TorchBackend._inputs",
                "return _Inputs(q.view(num_tokens, keys.shape[1], -1, head_size), keys, values, "
                "scale)",
                "return _Inputs(q.view(num_tokens, keys.shape[1], -1, head_size), keys, values, "
                "head_size**-0.5)",
            ),
        ),
    ),
    Mutant(
        id="attn.bidirectional",
        bug="F17",
        statement="A chunk's rows see the tokens after them.",
        expects="num.attn",
        trigger="a chunk of two rows",
        edits=(
            Edit(
                f"{TILES}._chunk_tiles",
                "self._bias((keys <= queries) & (keys > queries - self._window))",
                "self._bias((keys < length) & (keys > queries - self._window))",
            ),
        ),
    ),
    Mutant(
        id="attn.window-one-more",
        bug="F09",
        statement="A decode row sees one token more than its window.",
        expects="num.attn",
        trigger="a decode longer than its window",
        edits=(
            Edit(
                f"{TILES}._decode_tiles",
                "(positions >= length - self._window)",
                "(positions >= length - self._window - 1)",
            ),
        ),
    ),
    Mutant(
        id="attn.window-chunk-one-less",
        bug="F09",
        statement="A chunk's rows see one token less than their window.",
        expects="num.attn",
        trigger="a chunk longer than its window",
        edits=(
            Edit(
                f"{TILES}._chunk_tiles",
                "(keys > queries - self._window)",
                "(keys > queries - self._window + 1)",
            ),
        ),
    ),
    Mutant(
        id="attn.reads-tail",
        bug="F02",
        statement="Slots beyond a sequence's end are read, and only their scores are masked.",
        expects="num.poison-free",
        trigger="NaN in the tail of a partly filled block",
        edits=(
            Edit(
                f"{TILES}._decode_tiles",
                "torch.where(visible, positions, length - 1)",
                "torch.where(positions < self._metadata.max_seq_len, positions, length - 1)",
            ),
        ),
    ),
    Mutant(
        id="attn.reads-before-window",
        bug="F03",
        statement="Values of tokens before the window are read, and only their scores masked.",
        expects="num.poison-free",
        trigger="NaN in blocks that the window has left",
        edits=(
            Edit(
                f"{TILES}._chunk_tiles",
                "readable = (keys < length) & (keys >= oldest)",
                "readable = keys < length",
            ),
        ),
    ),
    Mutant(
        id="attn.first-tile-only",
        bug="F04",
        statement="Of a decode's tiles the results are added up without their weights.",
        expects="num.attn",
        trigger="a decode of two tiles",
        edits=(
            Edit(
                f"{TORCH}:_Merged.add",
                "torch.exp(old_max - new_max), torch.exp(lse - new_max)",
                "torch.exp(old_max - new_max), torch.ones_like(lse)",
            ),
        ),
    ),
    Mutant(
        id="attn.lse-of-empty-is-zero",
        bug="F07",
        statement="Merging starts from weight exp(0) for what has no keys.",
        expects="num.attn",
        trigger="two tiles",
        edits=(
            Edit(
                f"{TORCH}:_Merged.__init__",
                "self._max = torch.full_like(self._weight, -torch.inf)",
                "self._max = torch.zeros_like(self._weight)\n    self._weight += 1",
            ),
        ),
    ),
    Mutant(
        id="attn.finite-mask",
        bug="F06",
        statement="Masked scores are lowered by 10 instead of being removed.",
        expects="num.attn",
        trigger="any mask",
        edits=(
            Edit(
                f"{TILES}._bias",
                'nothing.where(visible, float("-inf"))',
                "nothing.where(visible, -10.0)",
            ),
        ),
    ),
    Mutant(
        id="attn.group-index",
        bug="J05",
        statement="Query heads are dealt to the KV heads in turn, not in groups.",
        expects="num.attn",
        trigger="several query heads per KV head, several KV heads",
        edits=(
            Edit(
                f"{TORCH}:TorchBackend._inputs",
                "q.view(num_tokens, keys.shape[1], -1, head_size)",
                "q.view(num_tokens, -1, keys.shape[1], head_size).transpose(1, 2)",
            ),
        ),
    ),
    Mutant(
        id="attn.soft-cap-before-scale",
        bug="",
        statement="The soft cap is left out of scores.",
        expects="num.attn",
        trigger="a soft cap",
        edits=(
            Edit(
                f"{TORCH}:TorchBackend._attend",
                "torch.tanh(scores / self.spec.soft_cap) * self.spec.soft_cap",
                "scores.clamp(-self.spec.soft_cap, self.spec.soft_cap)",
            ),
        ),
    ),
    Mutant(
        id="attn.half-sums",
        bug="",
        statement="Merged sums are kept in bfloat16.",
        expects="num.attn",
        trigger="two tiles",
        edits=(
            Edit(
                f"{TORCH}:_Merged.result",
                "return self._sum / self._weight[..., None]",
                "return (self._sum / self._weight[..., None]).bfloat16().to(self._sum.dtype)",
            ),
        ),
    ),
    Mutant(
        id="attn.tables-by-place",
        bug="E11",
        statement="A sequence's blocks are looked up in the row of its place in the step.",
        expects="num.attn",
        trigger="rows that are not in the order of the step",
        edits=(
            Edit(
                f"{TILES}._slots",
                "rows = self._metadata.table_rows[sequence]",
                "rows = sequence",
            ),
        ),
    ),
)
