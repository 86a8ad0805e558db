"""What a committed benchmark result keeps: raw samples, rounded, and no name of the machine."""

from typing import Any

SAMPLES = 100
"""Of a benchmark's rounds, evenly spaced; its statistics are over all of them."""


def pytest_benchmark_update_machine_info(config: object, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)
    cpu = machine_info.get("cpu", {})
    machine_info["cpu"] = {key: cpu.get(key) for key in ("brand_raw", "count", "arch")}


def pytest_benchmark_update_json(
    config: object, benchmarks: object, output_json: dict[str, Any]
) -> None:
    for result in output_json["benchmarks"]:
        samples = result["stats"]["data"]
        step = max(1, len(samples) // SAMPLES)
        result["stats"]["data"] = [float(f"{seconds:.4g}") for seconds in samples[::step]]
