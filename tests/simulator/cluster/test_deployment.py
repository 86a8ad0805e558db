"""A way to run a model becomes a pool with its memory, costs and price."""

import pytest

from pagetwin.engine.errors import ConfigError, ModelError
from pagetwin.simulator.clock import to_ticks
from pagetwin.simulator.cluster.deployment import Deployment, deployment_of
from pagetwin.simulator.costs.basis import Curve
from pagetwin.simulator.costs.known_models import KNOWN, config_named
from pagetwin.simulator.costs.model_shape import shape_of
from pagetwin.simulator.costs.profile import Profile, subject_of
from pagetwin.simulator.costs.step_costs import ContextCosts, EagerCosts, StepCosts
from pagetwin.simulator.simulate import simulate


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Llama-3.1-8B", 8.03), ("Llama-3.1-70B", 70.55), ("Qwen3-8B", 8.19), ("Qwen3-32B", 32.76)],
)
def test_known_models_have_the_size_that_they_are_named_for(name: str, billions: float) -> None:
    assert shape_of(KNOWN[name]).num_parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_models_are_found_by_the_names_that_people_use() -> None:
    for name in ("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B"):
        assert config_named(name) is KNOWN["Llama-3.1-8B"]
    with pytest.raises(ModelError, match=r"model 'gpt-9' is neither a file nor known.*Qwen3-8B"):
        config_named("gpt-9")


def test_more_gpus_hold_more_blocks_and_step_faster() -> None:
    config = KNOWN["Llama-3.1-8B"]
    one, two = (Deployment(tp=tp, max_model_len=4096).pool("p", config) for tp in (1, 2))
    assert 20_000 < one.cache.num_blocks < 2 * one.cache.num_blocks < two.cache.num_blocks
    assert one.cost_model is not None
    assert two.cost_model is not None
    assert one.cost_model.decode_line(8, 8) > two.cost_model.decode_line(8, 8)
    assert (one.num_gpus, two.num_gpus) == (1, 2)
    assert "uncalibrated" in getattr(one.cost_model, "label", "")


def test_auto_is_what_the_model_says_and_zero_is_not_left_away() -> None:
    config = KNOWN["Qwen3-8B"]
    auto = Deployment(dtype="auto", kv_dtype="auto").pool("p", config)
    assert auto == Deployment().pool("p", config)
    half = Deployment(kv_dtype="float8").pool("p", config)
    assert half.cache.num_blocks == pytest.approx(2 * auto.cache.num_blocks, abs=1)
    for wrong in (Deployment(num_blocks=0), Deployment(max_model_len=0)):
        with pytest.raises(ConfigError, match="=0 is below"):
            wrong.pool("p", config)
    with pytest.raises(ModelError, match="dtype 'int3' is unknown"):
        Deployment(dtype="int3").pool("p", config)


def test_a_pool_changes_what_it_names() -> None:
    base = Deployment(gpu="h100", max_num_seqs=64)
    changed = deployment_of("gpu=h200,replicas=2,prefix_caching=false,role=decode", base)
    assert (changed.gpu, changed.replicas, changed.prefix_caching) == ("h200", 2, False)
    assert (changed.role, changed.max_num_seqs) == ("decode", 64)


def test_who_waits_for_a_prefix_finds_it_where_prompts_come_together() -> None:
    """Eight prompts begin alike and come at once: one of them computes what they share."""
    hits = {}
    for waits in (False, True):
        base = Deployment(max_model_len=4096, max_num_batched_tokens=8192, num_blocks=2000)
        pool = deployment_of(f"wait_for_prefix={waits}", base).pool("p", KNOWN["Qwen3-8B"])
        result = simulate("offline:system=640,input=100,output=4,requests=8", pool)
        hits[waits] = result.nodes[0].counters.prefix_hit_tokens
    assert hits == {False: 0, True: 7 * 640}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus=2", "'gpus=2' is not KNOB=VALUE; knobs are gpu"),
        ("replicas", "'replicas' is not KNOB=VALUE"),
        ("replicas=two", "pool 'replicas=two'"),
        ("role=boss", "pool 'role=boss'"),
    ],
)
def test_a_wrong_pool_is_explained(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deployment_of(text, Deployment())


def test_what_does_not_fit_or_is_unknown_is_explained() -> None:
    big = KNOWN["Llama-3.1-70B"]
    with pytest.raises(ConfigError, match="no memory is left for KV blocks on 1 x H100"):
        Deployment().pool("p", big)
    with pytest.raises(ConfigError, match="GPU 'tpu' is unknown"):
        Deployment(gpu="tpu").pool("p", big)
    with pytest.raises(ConfigError, match="replicas=0 is below 1"):
        Deployment(replicas=0).pool("p", big)


def profile_of(name: str, *, device: str = "NVIDIA H100 80GB HBM3", engine: str = "1.0") -> Profile:
    config = KNOWN[name]
    knobs = {"async_scheduling": "false"}
    products = Curve(knots=(1, 64), seconds=(0.5, 0.6))
    return Profile(
        subject=subject_of(config, dtype="bfloat16", device=device, engine=engine, knobs=knobs),
        model=name,
        model_config=config,
        sources_sha256="",
        max_num_seqs=64,
        costs=StepCosts(
            graph=None,
            context=ContextCosts(per_token_s=0.0),
            eager=EagerCosts(products=products, per_pair_s=0.0, per_chunk_s=0.0, per_sample_s=0.0),
        ),
        measured_up_to={},
        fitted_to=(),
        cross_validation={},
    )


def test_a_profile_gives_the_costs_of_what_it_was_measured_on_and_of_nothing_else() -> None:
    config, profile = KNOWN["Qwen3-0.6B"], profile_of("Qwen3-0.6B")
    costs = Deployment().calibrated(profile, config, "1.0")
    assert costs.decode_line(1, 1).base == to_ticks(0.5)
    assert getattr(costs, "label", "").startswith("calibrated: Qwen3-0.6B")
    wrong = [
        (Deployment(gpu="h200"), config, "1.0", "GPU H100, not H200"),
        (Deployment(tp=2), config, "1.0", "GPUs of a replica 1, not 2"),
        (Deployment(dtype="float16"), config, "1.0", "dtype bfloat16, not float16"),
        (Deployment(), config, "2.0", "engine version 1.0, not 2.0"),
        (Deployment(), KNOWN["Qwen3-8B"], "1.0", "model ModelShape"),
    ]
    for deployment, model, engine, message in wrong:
        with pytest.raises(ConfigError, match=f"{message}.*calibrate on a history"):
            deployment.calibrated(profile, model, engine)


def test_what_was_measured_for_this_package_is_found_by_model_gpu_and_dtype() -> None:
    config = KNOWN["Llama-3.1-8B"]
    measured = Deployment(gpu="h100").measured(config)
    assert getattr(measured, "label", "").startswith("calibrated: llama-3.1-8b on NVIDIA H100")
    assert Deployment(gpu="a100").measured(config) is None
    assert Deployment(tp=2).measured(config) is None
    assert Deployment(dtype="float16").measured(config) is None
    assert Deployment().measured(KNOWN["Qwen3-8B"]) is None
