"""Lists of prompts on a real, tiny model: the outputs of transformers, in the prompts' order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pagetwin.engine.config import CacheConfig, EngineConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError, RequestError
from pagetwin.engine.fingerprint import FingerprintExecutor
from pagetwin.engine.llm import LLM, sort_knobs
from pagetwin.engine.llm_engine import LLMEngine
from pagetwin.engine.sampling_params import BeamSearchParams, SamplingParams
from pagetwin.engine.tokenizer import ByteTokenizer

EOS = 256
VOCAB_SIZE = 257
TEXTS = ["a", "the quick brown fox", "the quick brown fox jumps over", "日本語", "x" * 40]
STOPPINGS: list[bool | Literal["never"]] = [False, True, "never"]


def toy_llm(num_blocks: int = 200, **scheduler: Any) -> LLM:
    """No model at all: outputs are hashes of the prompts."""
    cache = CacheConfig(num_blocks=num_blocks, block_size=4)
    knobs: dict[str, Any] = {"max_model_len": 100, "max_num_seqs": 8, "max_num_batched_tokens": 64}
    engine = LLMEngine(
        EngineConfig(cache=cache, scheduler=SchedulerConfig(**(knobs | scheduler))),
        FingerprintExecutor(cache, vocab_size=VOCAB_SIZE),
        vocab_size=VOCAB_SIZE,
        tokenizer=ByteTokenizer(),
        eos_token_ids=(EOS,),
    )
    return LLM.from_engine(engine)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose vocabulary is the byte tokenizer's."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Sharper than the usual initialisation: outputs that vary, few near-ties, some EOS.
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)
        model.lm_head.weight[EOS] *= 2.5
    path: Path = tmp_path_factory.mktemp("llama")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def make_llm(folder: Path, **knobs: Any) -> LLM:
    defaults: dict[str, Any] = {
        "tokenizer": "bytes",
        "block_size": 4,
        "num_blocks": 400,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "device": "cpu",
    }
    return LLM(str(folder), **(defaults | knobs))


def of_transformers(
    reference: Any, text: str, **options: Any
) -> tuple[list[tuple[int, ...]], list[float]]:
    """Output tokens, and the scores of a beam search."""
    prompt = list(text.encode())
    output = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    rows = [row[len(prompt) :] for row in output.sequences.tolist()]
    # Shorter rows are padded behind their EOS.
    token_ids = [tuple(row[: row.index(EOS) + 1] if EOS in row else row) for row in rows]
    return token_ids, output.sequences_scores.tolist() if "num_beams" in options else []


@pytest.mark.parametrize("num_blocks", [25, 400])
def test_greedy_outputs_are_those_of_transformers(
    folder: Path, reference: Any, num_blocks: int
) -> None:
    llm = make_llm(folder, num_blocks=num_blocks, debug_invariants=True)
    outputs = llm.generate(TEXTS, SamplingParams(temperature=0, max_tokens=25))
    preemptions = llm.engine.core.scheduler.counters().preemptions_recompute
    assert (preemptions > 0) == (num_blocks == 25)
    for text, output in zip(TEXTS, outputs, strict=True):
        [expected], _ = of_transformers(reference, text, max_new_tokens=25)
        [completion] = output.outputs
        assert completion.token_ids == expected
        assert completion.finish_reason == ("stop" if expected[-1] == EOS else "length")
        assert completion.text == ByteTokenizer().decode(expected)
        assert output.prompt == text


@pytest.mark.parametrize("num_blocks", [60, 400])
def test_beam_searches_are_those_of_transformers(
    folder: Path, reference: Any, num_blocks: int
) -> None:
    llm = make_llm(folder, num_blocks=num_blocks, max_num_seqs=64, debug_invariants=True)
    texts = [f"{i} {text}" for i in range(3) for text in TEXTS]
    num_stopped = num_full = 0
    searches = [
        BeamSearchParams(beam_width=width, length_penalty=penalty, early_stopping=stopping)
        for width, penalty in ((2, 0.0), (4, 1.0))
        for stopping in STOPPINGS
    ]
    for search in searches:
        outputs = llm.beam_search(texts, search, SamplingParams(n=2, max_tokens=12, min_tokens=2))
        for text, output in zip(texts, outputs, strict=True):
            expected, scores = of_transformers(
                reference,
                text,
                num_beams=search.beam_width,
                num_return_sequences=2,
                length_penalty=search.length_penalty,
                early_stopping=search.early_stopping,
                max_new_tokens=12,
                min_new_tokens=2,
            )
            assert [c.token_ids for c in output.outputs] == expected
            assert [c.score for c in output.outputs] == pytest.approx(scores, rel=1e-5)
            num_stopped += sum(c.finish_reason == "stop" for c in output.outputs)
            num_full += sum(c.finish_reason == "length" for c in output.outputs)
    assert min(num_stopped, num_full) > 10
    preemptions = llm.engine.core.scheduler.counters().preemptions_recompute
    assert (preemptions > 0) == (num_blocks == 60)


def test_seeded_samples_depend_on_nothing_but_their_request(folder: Path) -> None:
    params = SamplingParams(n=3, seed=7, temperature=0.8, top_p=0.9, max_tokens=12)
    [alone] = make_llm(folder).generate(TEXTS[1], params)
    assert len({completion.token_ids for completion in alone.outputs}) > 1
    others = [SamplingParams(max_tokens=20) for _ in TEXTS]
    others[1] = params
    llm = make_llm(folder, num_blocks=30)
    outputs = llm.generate(TEXTS, others)
    assert llm.engine.core.scheduler.counters().preemptions_recompute > 0
    assert [c.token_ids for c in outputs[1].outputs] == [c.token_ids for c in alone.outputs]


def test_a_stop_string_cuts_the_output(folder: Path) -> None:
    llm = make_llm(folder)
    params = SamplingParams(temperature=0, max_tokens=25, ignore_eos=True)
    [whole] = llm.generate(TEXTS[1], params)
    text = whole.outputs[0].text
    stop = text[4:7]
    [cut] = llm.generate(
        TEXTS[1], SamplingParams(temperature=0, max_tokens=25, ignore_eos=True, stop=(stop,))
    )
    assert cut.outputs[0].text == text[: text.index(stop)]
    assert cut.outputs[0].stop_reason == stop
    count = len(cut.outputs[0].token_ids)
    assert cut.outputs[0].token_ids == whole.outputs[0].token_ids[:count]


def test_an_abort_changes_no_other_output(folder: Path) -> None:
    engine = make_llm(folder).engine
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    for i, text in enumerate(TEXTS):
        engine.add_request(str(i), text, params)
    outputs = {}
    for _ in range(4):
        outputs.update({output.request_id: output for output in engine.step()})
    engine.abort_request("2")
    while engine.has_unfinished_requests():
        outputs.update({output.request_id: output for output in engine.step()})
    assert outputs["2"].outputs[0].finish_reason == "abort"
    expected = make_llm(folder).generate(TEXTS, params)
    for i in (0, 1, 3, 4):
        assert outputs[str(i)].outputs == expected[i].outputs


def test_logprobs_are_the_models(folder: Path, reference: Any) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, logprobs=2, prompt_logprobs=1)
    [output] = make_llm(folder).generate(TEXTS[1], params)
    [completion] = output.outputs
    token_ids = [*output.prompt_token_ids, *completion.token_ids]
    with torch.no_grad():
        logits = reference(torch.tensor([token_ids])).logits[0]
    expected = torch.log_softmax(logits, dim=-1)
    assert output.prompt_logprobs is not None
    assert completion.logprobs is not None
    assert output.prompt_logprobs[0] is None
    entries = [*output.prompt_logprobs[1:], *completion.logprobs]
    assert len(entries) == len(token_ids) - 1
    for position, entry in enumerate(entries):
        assert entry is not None
        assert entry.token_ids[0] == token_ids[position + 1]
        wanted = expected[position, list(entry.token_ids)].tolist()
        assert entry.logprobs == pytest.approx(wanted, abs=1e-4)
    total = sum(entry.logprobs[0] for entry in completion.logprobs)
    assert completion.cumulative_logprob == pytest.approx(total)


def test_the_pool_takes_the_memory_it_is_given(folder: Path) -> None:
    per_block = 2 * 2 * 2 * 8 * 4 * 16
    config = LLM(str(folder), tokenizer="bytes", kv_cache_memory_bytes=10 * per_block).engine.config
    assert config.cache.num_blocks == 10
    assert config.scheduler.max_model_len == 128
    with pytest.raises(ConfigError, match="at least 2 are needed"):
        LLM(str(folder), tokenizer="bytes", kv_cache_memory_bytes=per_block)
    # No more than all sequences can use: 4 of 128 tokens in blocks of 16.
    assert LLM(str(folder), tokenizer="bytes", max_num_seqs=4).engine.config.cache.num_blocks == 33


def test_unknown_and_impossible_knobs_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown knob 'max_num_seq'=4; did you mean 'max_num_s"):
        LLM(str(folder), max_num_seq=4)
    with pytest.raises(ConfigError, match=r"unknown knob 'zzz'=1; known: .*block_size"):
        sort_knobs({"zzz": 1})
    with pytest.raises(ConfigError, match=r"block_size=0 is below 1"):
        LLM(str(folder), tokenizer="bytes", block_size=0)
    with pytest.raises(ConfigError, match="CacheConfig: Expected `int`, got `str`"):
        LLM(str(folder), tokenizer="bytes", block_size="big")
    with pytest.raises(ConfigError, match="say the same thing"):
        LLM(str(folder), num_blocks=10, kv_cache_memory_bytes=10)
    for share, words in (
        (0.5, "no meaning on a CPU"),
        (1.5, "above 1; it is a share"),
        (-1, "not a positive number"),
        ("all", "not a positive number"),
    ):
        with pytest.raises(ConfigError, match=f"gpu_memory_utilization=.* {words}"):
            LLM(str(folder), tokenizer="bytes", device="cpu", gpu_memory_utilization=share)
    knobs = {"gpu_memory_utilization": 0.5, "kv_cache_memory_bytes": 2**20}
    with pytest.raises(ConfigError, match="say the same thing"):
        LLM(str(folder), tokenizer="bytes", **knobs)


def test_results_stand_in_the_order_of_the_prompts() -> None:
    llm = toy_llm(max_num_seqs=2)
    prompts = [f"prompt {i}" for i in range(30)]
    lengths = [1 + (7 * i) % 13 for i in range(30)]
    params = [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths]
    outputs = llm.generate(prompts, params)
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
    ids = [output.request_id for output in outputs + llm.generate(prompts[:3])]
    assert sorted(set(ids)) == ids


@pytest.mark.parametrize("prompts", ["text", list(b"text"), [list(b"text")], ["text"]])
def test_one_prompt_may_stand_alone(prompts: str | Sequence[int]) -> None:
    [output] = toy_llm().generate(prompts, SamplingParams(max_tokens=2))
    assert output.prompt_token_ids == tuple(b"text")


def test_no_prompts_give_no_outputs() -> None:
    assert toy_llm().generate([]) == []


def test_chats_are_answered_in_order() -> None:
    llm = toy_llm()
    chat = [{"role": "user", "content": "hi"}]
    other = [{"role": "user", "content": "bye"}]
    [one] = llm.chat(chat, SamplingParams(max_tokens=3))
    both = llm.chat([other, chat], SamplingParams(max_tokens=3))
    assert both[1].outputs == one.outputs
    assert both[0].prompt == "user: bye\nassistant:"


@pytest.mark.parametrize("messages", ["hello", ["hello"], [[]], [[{"role": "user"}, "hello"]]])
def test_what_is_no_chat_is_not_taken_for_a_prompt(messages: Any) -> None:
    with pytest.raises(RequestError, match="is no chat; give a list of messages"):
        toy_llm().chat(messages)


def test_a_refused_prompt_stops_the_call_and_leaves_nothing_behind() -> None:
    llm = toy_llm()
    with pytest.raises(RequestError, match="max_model_len"):
        llm.generate(["fine", "x" * 200])
    with pytest.raises(ConfigError, match="2 sets of parameters for 1 prompts"):
        llm.generate(["fine"], [SamplingParams(), SamplingParams()])
    assert llm.engine.get_num_unfinished_requests() == 0
    assert len(llm.generate(["fine"])) == 1


def test_progress_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    llm = toy_llm()
    llm.generate(["a", "b"])
    assert capsys.readouterr().out == ""
    llm.generate(["a", "b"], progress=True)
    assert "2/2" in capsys.readouterr().out
