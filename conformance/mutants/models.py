"""Mutants of what a checkpoint's words mean: rotary angles, windows, biases, weights."""

from pagetwin.conformance.mutants.edits import Edit
from pagetwin.conformance.mutants.mutant import Mutant

ENGINE = "pagetwin.engine."

MODELS = (
    Mutant(
        id="model.llama3-of-the-long-context",
        bug="",
        statement=("The llama3 ramp counts turns over the stretched context."),
        expects="num.families",
        trigger="rope_type llama3",
        edits=(
            Edit(
                f"{ENGINE}layers.rotary:_llama3",
                ("rope.original_max_position /"),
                ("rope.max_position_embeddings /"),
            ),
        ),
    ),
    Mutant(
        id="model.yarn-without-its-factor",
        bug="",
        statement=("Yarn's factor on attention is left out."),
        expects="num.families",
        trigger="rope_type yarn",
        edits=(
            Edit(
                f"{ENGINE}layers.rotary:rope_frequencies", ("_yarn_attention_factor(rope)"), ("1.0")
            ),
        ),
    ),
    Mutant(
        id="model.yarn-between-channels",
        bug="",
        statement=("Yarn's ramp is not rounded to whole channels unless it is asked for."),
        expects="num.families",
        trigger="rope_type yarn without truncate",
        edits=(
            Edit(
                f"{ENGINE}layers.rotary:_yarn",
                ('rope.parameters.get("truncate", True)'),
                ('rope.parameters.get("truncate", False)'),
            ),
        ),
    ),
    Mutant(
        id="model.theta-of-old-alone",
        bug="",
        statement=("rope_theta inside rope_parameters is overlooked."),
        expects="num.families",
        trigger="another theta, in the words of transformers 5",
        edits=(
            Edit(
                f"{ENGINE}models.llama_config:_read_rope",
                ('parameters.get("rope_theta") or reader.get("rope_theta") or 10000.0'),
                ('reader.get("rope_theta") or 10000.0'),
            ),
        ),
    ),
    Mutant(
        id="model.window-a-layer-late",
        bug="",
        statement=("The first windowed layer sees everything."),
        expects="num.families",
        trigger="max_window_layers within the model",
        edits=(
            Edit(
                f"{ENGINE}models.llama_config:_read_windows",
                ("window if layer >= first else 0"),
                ("window if layer > first else 0"),
            ),
        ),
    ),
    Mutant(
        id="model.windows-alike",
        bug="",
        statement=("Every layer has the first one's window."),
        expects="num.families",
        trigger="layers with and without a window",
        edits=(
            Edit(
                f"{ENGINE}models.llama:LlamaAttention.__init__",
                ("config.sliding_windows[layer_index]"),
                ("config.sliding_windows[0]"),
            ),
        ),
    ),
    Mutant(
        id="model.blocks-of-the-smallest-window",
        bug="",
        statement=("Blocks are freed by a window that some layer does not have."),
        expects="num.families",
        trigger="layers without a window, and a tight pool",
        edits=(
            Edit(
                f"{ENGINE}factory:cache_sliding_window",
                ("max(spec.sliding_windows, default=0) if all(spec.sliding_windows) else 0"),
                ("max(spec.sliding_windows, default=0)"),
            ),
        ),
    ),
    Mutant(
        id="model.tiles-of-the-first-window",
        bug="",
        statement=("Attention uses one layer's tiles for layers with another window."),
        expects="num.families",
        trigger="layers with and without a window",
        edits=(
            Edit(
                f"{ENGINE}attention.torch_backend:TorchBackend._tiles",
                ("self._step.tiles.get(sliding_window)"),
                ("next(iter(self._step.tiles.values()), None)"),
            ),
        ),
        also_tried=("families",),
    ),
    Mutant(
        id="model.eps-ignored",
        bug="",
        statement=("rms_norm_eps is always 1e-6."),
        expects="num.families",
        trigger="another eps",
        edits=(
            Edit(
                f"{ENGINE}models.llama_config:read_llama_config",
                ('rms_norm_eps=reader.number("rms_norm_eps")'),
                ("rms_norm_eps=1e-6"),
            ),
        ),
    ),
    Mutant(
        id="model.scale-of-the-hidden-size",
        bug="",
        statement=("Scores are scaled as if heads divided the hidden size."),
        expects="num.families",
        trigger="a head_dim of its own",
        edits=(
            Edit(
                f"{ENGINE}models.llama:LlamaAttention.__init__",
                ("scale=head_size**-0.5"),
                ("scale=(config.hidden_size // config.num_attention_heads) ** -0.5"),
            ),
        ),
    ),
    Mutant(
        id="model.keys-and-values-exchanged",
        bug="",
        statement=("The merged matrix has values where keys are read."),
        expects="num.families",
        trigger="any model",
        edits=(
            Edit(
                f"{ENGINE}models.llama:LlamaAttention.__init__",
                ('{"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}'),
                ('{"q_proj": q_size, "v_proj": kv_size, "k_proj": kv_size}'),
            ),
        ),
    ),
    Mutant(
        id="model.first-eos-alone",
        bug="",
        statement=("Of several ends of sequence in the configuration the first counts."),
        expects="num.families",
        trigger="two ends of sequence",
        edits=(
            Edit(
                f"{ENGINE}models.llama_config:_read_eos",
                ("tuple(value) if isinstance(value, list)"),
                ("(value[0],) if isinstance(value, list)"),
            ),
        ),
    ),
    Mutant(
        id="model.long-prompt-scores",
        bug="",
        statement=(
            "Prompt log-probabilities behind the first piece are of the first piece's rows."
        ),
        expects="num.families",
        trigger="a prompt of more than one piece",
        edits=(
            Edit(
                f"{ENGINE}model_runner:ModelRunner._prompt_logprobs",
                ("first = chunk.first_row + offset"),
                ("first = chunk.first_row"),
            ),
        ),
        also_tried=("families",),
    ),
)
