"""Products with weights against float64; a row's bits are its own, however many stand beside it."""

from random import Random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pagetwin.kernels import reference_linear as reference
from pagetwin.kernels.activation import silu_and_mul
from pagetwin.kernels.linear import (
    linear,
    linear_add,
    linear_add_op,
    linear_op,
    no_split_k,
    norm_gated_linear,
    norm_gated_linear_op,
    norm_linear,
    norm_linear_op,
    uses_cublas,
)
from pagetwin.kernels.linear_tiles import launch_linear
from pagetwin.kernels.norm import rms_norm

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = 1e-5
gpu = pytest.mark.gpu


def draw(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def weights(n: int, k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return draw(n, k, dtype=dtype, device=device, seed=1).mul_(k**-0.5)


def poisoned_rows(rows: int, k: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[rows, k] inside a tensor that is NaN around it."""
    around = torch.full((rows + 2, k + 16), torch.nan, dtype=dtype, device=device)
    x = around[1:-1, 8:-8]
    return x.copy_(draw(rows, k, dtype=dtype, device=device))


def assert_within_bound(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    exact = reference.linear(x.double(), weight.double(), None if bias is None else bias.double())
    bound = reference.linear_error_bound(x, weight, bias, y.dtype)
    ratio = ((y.double() - exact).abs() / bound).max()
    assert ratio <= 1, f"error is {ratio} of its bound"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(16, 16), (96, 576), (40, 100), (3000, 64)])
def test_products_are_exact_within_their_roundings(
    device: torch.device, n: int, k: int, dtype: torch.dtype
) -> None:
    x, weight = poisoned_rows(3, k, dtype, device), weights(n, k, dtype, device)
    bias = draw(n, dtype=dtype, device=device, seed=2)
    for b in (None, bias):
        y = linear(x, weight, b)
        assert y.shape == (3, n)
        assert y.dtype == dtype
        assert_within_bound(y, x, weight, b)


@pytest.mark.parametrize("rows", [1, 8, 9, 17, 40, 70])
def test_any_number_of_rows(device: torch.device, rows: int) -> None:
    x = poisoned_rows(rows, 64, torch.bfloat16, device)
    weight = weights(96, 64, torch.bfloat16, device)
    with no_split_k():
        assert_within_bound(linear(x, weight), x, weight, None)


@pytest.mark.parametrize("rows", [2, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_float32(device: torch.device, rows: int, dtype: torch.dtype) -> None:
    x, weight = poisoned_rows(rows, 64, dtype, device), weights(100, 64, dtype, device)
    out = torch.full((rows, 100), torch.nan, device=device)
    with no_split_k():
        assert linear(x, weight, out=out) is out
    assert_within_bound(out, x, weight, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [3, 80])
def test_a_product_is_rounded_before_it_is_added_in_place(
    device: torch.device, rows: int, has_bias: bool, dtype: torch.dtype
) -> None:
    x, weight = poisoned_rows(rows, 128, dtype, device), weights(48, 128, dtype, device)
    bias = draw(48, dtype=dtype, device=device, seed=2) if has_bias else None
    residual = draw(rows, 48, dtype=dtype, device=device, seed=3)
    with no_split_k():
        expected = residual + linear(x, weight, bias)
        assert linear_add(x, weight, residual, bias) is residual
    assert torch.equal(residual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [3, 20])
def test_norm_and_gate_have_the_bits_of_their_own_kernels(
    device: torch.device, rows: int, has_bias: bool, dtype: torch.dtype
) -> None:
    x, weight = poisoned_rows(rows, 256, dtype, device), weights(64, 256, dtype, device)
    norm_weight = draw(256, dtype=dtype, device=device, seed=2)
    bias = draw(64, dtype=dtype, device=device, seed=3) if has_bias else None
    with no_split_k():
        product = linear(rms_norm(x, norm_weight, EPS), weight, bias)
        assert torch.equal(norm_linear(x, norm_weight, EPS, weight, bias), product)
        gated = norm_gated_linear(x, norm_weight, EPS, weight, bias)
    assert torch.equal(gated, silu_and_mul(product))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_bits_do_not_depend_on_the_rows_beside_it(
    device: torch.device, dtype: torch.dtype
) -> None:
    if device.type == "cpu" and dtype != torch.float32:
        pytest.skip("interpreted, sums are numpy's, whose order follows the tile; float32 has one")
    x = draw(70, 192, dtype=dtype, device=device)
    weight = weights(64, 192, dtype, device)
    residual = draw(70, 64, dtype=dtype, device=device, seed=2)
    norm_weight = draw(192, dtype=dtype, device=device, seed=3)
    with no_split_k():
        whole = linear_add(x, weight, residual.clone())
        gated = norm_gated_linear(x, norm_weight, EPS, weight)
        for start, end in ((7, 8), (3, 11), (0, 16), (9, 40), (2, 69)):
            part = linear_add(x[start:end], weight, residual[start:end].clone())
            assert torch.equal(part, whole[start:end])
            part = norm_gated_linear(x[start:end], norm_weight, EPS, weight)
            assert torch.equal(part, gated[start:end])


def test_gates_go_to_the_kernel_that_is_chosen(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of products that are cuBLAS's, those without a bias that a kernel does faster."""
    x, weight = (draw(n, 64, dtype=torch.bfloat16, device=device, seed=n) for n in (200, 32))
    norm_weight, bias = weight[0], weight[:, 0].contiguous()
    asked, launched = [], []

    def choose_tile(*shape: int) -> str | None:
        asked.append(shape)
        return "tile" if shape[0] > 100 else None

    def launch(x: Tensor, weight: Tensor, out: Tensor, tile: str) -> None:
        launched.append(tile)
        out.copy_(silu_and_mul(F.linear(x, weight)))

    hopper = SimpleNamespace(choose_tile=choose_tile, launch_gated_hopper=launch)
    monkeypatch.setattr("pagetwin.kernels.linear.num_multiprocessors", lambda device: 132)
    monkeypatch.setattr("pagetwin.kernels.linear._gated_hopper", lambda device: hopper)
    monkeypatch.setattr("pagetwin.kernels.linear.uses_cublas", lambda x, weight: True)
    with no_split_k():
        for rows, b in ((200, None), (200, bias), (7, None)):
            expected = silu_and_mul(F.linear(rms_norm(x[:rows], norm_weight, EPS), weight, b))
            gated = norm_gated_linear(x[:rows], norm_weight, EPS, weight, b)
            assert torch.equal(gated, expected)
    assert asked == [(200, 16, 64, 132), (7, 16, 64, 132)]
    assert launched == ["tile"]


def test_tiles_of_gates_fit_and_leave_few_processors_idle() -> None:
    hopper = pytest.importorskip("pagetwin.kernels.gated_hopper")
    random = Random(0)
    chosen = set()
    for _ in range(2000):
        rows, n, k = (8 * int(2 ** random.uniform(0, high)) for high in (11, 12, 11))
        tile = hopper.choose_tile(rows, n, k, 132)
        chosen.add(tile)
        if tile is None:
            continue
        slot_bytes = (tile.groups * 64 + 2 * tile.columns) * 128
        out_bytes = tile.groups * 64 * tile.columns * 2
        slots = tile.num_slots(k)
        assert slots >= min(4, -(-k // 64))
        assert slots * slot_bytes + out_bytes <= 226 * 1024
        programs = tile.num_tiles(rows, n)
        idle = 1 - programs / (132 * -(-programs // 132))
        assert 96 <= programs <= 132 if rows <= 256 else idle < 180 / (180 + k)
    assert chosen == {None, *hopper.TILES}
    assert hopper.choose_tile(8192, 14336, 4096, 132) == (2, 128)
    assert hopper.choose_tile(8192, 3072, 1024, 132) == (2, 128)
    assert hopper.choose_tile(8192, 3070, 1024, 132) is None


def test_no_rows_are_no_work(device: torch.device) -> None:
    x, weight = torch.empty(0, 64, device=device), torch.randn(32, 64, device=device)
    assert linear(x, weight).shape == (0, 32)
    assert norm_gated_linear(x, weight[0], EPS, weight).shape == (0, 16)
    assert linear_add(x, weight, torch.empty(0, 32, device=device)).shape == (0, 32)


def test_operators_are_the_launches(device: torch.device) -> None:
    x = draw(3, 64, dtype=torch.float32, device=device)
    weight = weights(32, 64, torch.float32, device)
    norm_weight = draw(64, dtype=torch.float32, device=device, seed=2)
    residual = draw(3, 32, dtype=torch.float32, device=device, seed=3)
    torch.library.opcheck(linear_op, (x, weight))
    torch.library.opcheck(norm_linear_op, (x, norm_weight, EPS, weight))
    torch.library.opcheck(norm_gated_linear_op, (x, norm_weight, EPS, weight))
    torch.library.opcheck(linear_add_op, (x, weight, residual))


def test_the_settings_of_the_process_come_back() -> None:
    def settings() -> tuple[object, ...]:
        matmul = torch.backends.cuda.matmul
        return (
            torch._C._get_cublas_allow_bf16_reduced_precision_reduction(),
            torch._C._get_cublas_allow_fp16_reduced_precision_reduction(),
            torch._C._get_blas_preferred_backend(),
            matmul.allow_tf32,
        )

    before = settings()
    with pytest.raises(KeyError), no_split_k():
        raise KeyError
    assert settings() == before


SHAPES = {
    "Qwen3-0.6B qkv": (4096, 1024),
    "Qwen3-0.6B o": (1024, 2048),
    "Qwen3-0.6B gate_up": (6144, 1024),
    "Qwen3-0.6B down": (1024, 3072),
    "Llama-3.1-8B qkv": (6144, 4096),
    "Llama-3.1-8B o": (4096, 4096),
    "Llama-3.1-8B gate_up": (28672, 4096),
    "Llama-3.1-8B down": (4096, 14336),
}
COUNTS = [1, 2, 5, 8, 9, 16, 17, 24, 32, 33, 48, 64, 65, 66, 71, 72, 80, 96, 100, 112, 127, 128]
COUNTS += [129, 144, 160, 200, 224, 255, 256, 257, 320, 384, 512, 700, 1024, 1500, 2048, 4095, 8192]


@gpu
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cublas_has_the_bits_of_our_kernels(
    device: torch.device, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cpu":
        pytest.skip("there is no cuBLAS on a CPU")
    n, k = SHAPES[name]
    x, weight = draw(8192, k, dtype=dtype, device=device), weights(n, k, dtype, device)
    bias, norm_weight = (draw(s, dtype=dtype, device=device, seed=2) for s in (n, k))
    residual = draw(8192, n, dtype=dtype, device=device, seed=3)

    def everything(rows: slice) -> list[Tensor]:
        return [
            linear(x[rows], weight),
            linear(x[rows], weight, bias),
            linear_add(x[rows], weight, residual[rows].clone()),
            norm_gated_linear(x[rows], norm_weight, EPS, weight),
            linear(x[rows], weight, out=residual.new_empty(len(x[rows]), n, dtype=torch.float32)),
        ]

    with monkeypatch.context() as ours_alone:
        ours_alone.setattr("pagetwin.kernels.linear.most_rows", lambda n, k: 8192)
        ours_alone.setattr("pagetwin.kernels.linear._gated_hopper", lambda device: None)
        expected = everything(slice(0, 8192))
        few = everything(slice(0, 64))
    assert all(torch.equal(y, whole[:64]) for y, whole in zip(few, expected, strict=True))
    with no_split_k():
        for count in COUNTS:
            # Tiles end where the rows do, so the last rows are of interest, too.
            for rows in (slice(0, count), slice(8192 - count, 8192)):
                for i, (y, whole) in enumerate(zip(everything(rows), expected, strict=True)):
                    assert torch.equal(y, whole[rows]), (i, rows)
    assert uses_cublas(x, weight)
    assert not uses_cublas(x[:1], weight)


@gpu
@pytest.mark.parametrize("rows", [1, 5, 8])
@pytest.mark.parametrize("slots", [3, 4, 7])
def test_a_ring_of_weights_changes_no_bit(device: torch.device, rows: int, slots: int) -> None:
    hopper = pytest.importorskip("pagetwin.kernels.linear_hopper")
    if torch.cuda.get_device_capability(device) < (9, 0):
        pytest.skip("the kernel is for compute capability 9.0")
    n, k = 1024, 4096
    x, weight = (draw(s, k, dtype=torch.bfloat16, device=device, seed=s) for s in (rows, n))
    expected, out = (torch.full((rows, n), torch.nan, device=device).bfloat16() for _ in range(2))
    launch_linear(x, weight, None, None, expected)
    cut = hopper.Cut(8 if rows > 1 else 1, slots, 4)
    for _ in range(20):  # A slot that is written too early is not always read too late.
        out.fill_(torch.nan)
        hopper.launch_linear_hopper(x, None, 0.0, weight, None, None, out, cut)
        assert torch.equal(out, expected)


@gpu
@pytest.mark.parametrize("tile", [(2, 128), (1, 128), (2, 64), (1, 64), (1, 32)])
@pytest.mark.parametrize(("n", "k"), [(3072, 1024), (200, 72), (1000, 4096)])
def test_gates_have_the_bits_of_our_tiles(
    device: torch.device, n: int, k: int, tile: tuple[int, int]
) -> None:
    hopper = pytest.importorskip("pagetwin.kernels.gated_hopper")
    if torch.cuda.get_device_capability(device) != (9, 0):
        pytest.skip("the kernel is for compute capability 9.0")
    weight = weights(2 * n, k, torch.bfloat16, device)
    for rows in (1, 63, 64, 65, 200, 2500):
        x = poisoned_rows(rows, k, torch.bfloat16, device)
        expected, around = (
            torch.full((rows + 2, n), torch.nan, device=device).bfloat16() for _ in range(2)
        )
        launch_linear(x, weight, None, None, expected[1:-1], gated=True)
        for _ in range(5):  # A slot that is written too early is not always read too late.
            around.fill_(torch.nan)
            hopper.launch_gated_hopper(x, weight, around[1:-1], hopper.Tile(*tile))
            assert torch.equal(around[1:-1], expected[1:-1]), rows
            assert around[[0, -1]].isnan().all()
