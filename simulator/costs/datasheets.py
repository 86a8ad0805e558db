"""What makers say of their GPUs: peaks, memory, links, power. Nothing here was measured.

Peaks are dense (no sparsity), links the sum of both directions of all links, as datasheets count.
"""

import re

import msgspec

from pagetwin.engine.errors import ConfigError


class GPU(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator. FLOP/s by dtype; bytes, bytes per second, watts, US dollars per hour."""

    name: str
    peak_flops: dict[str, float]
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    """To the other GPUs of its host, both directions together."""
    power_w: float
    price_per_h: float
    """A guess to start from, of what clouds asked for one in 2025; give your own."""
    source: str

    def flops(self, dtype: str) -> float:
        """Peak of matrix products in a dtype. Raises ConfigError if it has none."""
        if dtype not in self.peak_flops:
            raise ConfigError(
                f"the {self.name} has no peak for {dtype!r} in its datasheet; use one of "
                f"{', '.join(self.peak_flops)}"
            )
        return self.peak_flops[dtype]


def _peaks(half: float, float8: float | None, single: float) -> dict[str, float]:
    peaks = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": single * 1e12}
    return peaks | ({"float8": float8 * 1e12} if float8 is not None else {})


_SHEETS = (
    GPU(
        name="A100",
        peak_flops=_peaks(312, None, 19.5),
        memory_bytes=80 * 10**9,
        memory_bandwidth=2.039e12,
        link_bandwidth=600e9,
        power_w=400,
        price_per_h=1.8,
        source="NVIDIA A100 Tensor Core GPU datasheet, A100 80GB SXM",
    ),
    GPU(
        name="H100",
        peak_flops=_peaks(989.4, 1978.9, 66.9),
        memory_bytes=80 * 10**9,
        memory_bandwidth=3.35e12,
        link_bandwidth=900e9,
        power_w=700,
        price_per_h=3.0,
        source="NVIDIA H100 Tensor Core GPU datasheet, H100 SXM",
    ),
    GPU(
        name="H200",
        peak_flops=_peaks(989.4, 1978.9, 66.9),
        memory_bytes=141 * 10**9,
        memory_bandwidth=4.8e12,
        link_bandwidth=900e9,
        power_w=700,
        price_per_h=3.8,
        source="NVIDIA H200 Tensor Core GPU datasheet, H200 SXM",
    ),
    GPU(
        name="B200",
        peak_flops=_peaks(2250, 4500, 75),
        memory_bytes=180 * 10**9,
        memory_bandwidth=8.0e12,
        link_bandwidth=1800e9,
        power_w=1000,
        price_per_h=6.0,
        source="NVIDIA HGX B200 datasheet, an eighth of the board",
    ),
    GPU(
        name="L40S",
        peak_flops=_peaks(362, 733, 91.6),
        memory_bytes=48 * 10**9,
        memory_bandwidth=864e9,
        link_bandwidth=64e9,
        power_w=350,
        price_per_h=1.0,
        source="NVIDIA L40S datasheet; the link is PCIe 4.0 x16",
    ),
    GPU(
        name="MI300X",
        peak_flops=_peaks(1307.4, 2614.9, 163.4),
        memory_bytes=192 * 10**9,
        memory_bandwidth=5.3e12,
        link_bandwidth=896e9,
        power_w=750,
        price_per_h=2.5,
        source="AMD Instinct MI300X datasheet",
    ),
    GPU(
        name="RTX4090",
        peak_flops=_peaks(165.2, 330.3, 82.6),
        memory_bytes=24 * 10**9,
        memory_bandwidth=1.008e12,
        link_bandwidth=64e9,
        power_w=450,
        price_per_h=0.4,
        source="NVIDIA Ada GPU architecture whitepaper; products accumulate in float32",
    ),
    GPU(
        name="RTXPRO6000",
        peak_flops=_peaks(503.8, 1007.6, 125.0),
        memory_bytes=96 * 10**9,
        memory_bandwidth=1.792e12,
        link_bandwidth=128e9,
        power_w=600,
        price_per_h=1.8,
        source="NVIDIA RTX PRO 6000 Blackwell Workstation Edition datasheet; the link is PCIe 5.0",
    ),
)
GPUS = {sheet.name: sheet for sheet in _SHEETS}
# As words of their own, for a GH200 or an H1000 is another device; drivers write RTX 4090.
_NAMES = {name: re.compile(rf"(?<![A-Z0-9]){'[ -]?'.join(name)}(?![A-Z0-9])") for name in GPUS}


def gpu_named(name: str) -> GPU:
    """The datasheet of `h100`, or of a device as drivers call it ("NVIDIA H100 80GB HBM3").

    Raises ConfigError if none fits.
    """
    found = [known for known in GPUS if _NAMES[known].search(name.upper())]
    if not found:
        raise ConfigError(f"GPU {name!r} is unknown; datasheets are here for {', '.join(GPUS)}")
    return GPUS[max(found, key=len)]
