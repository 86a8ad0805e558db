"""Drawing tokens from logits: the largest, or as the most demanding request asks."""

from collections.abc import Iterator

import numpy as np
import torch

from pagetwin.conformance.bench.case import Case, Source
from pagetwin.conformance.bench.shapes import Shapes
from pagetwin.conformance.bench.timing import Launch
from pagetwin.engine.device_sampler import DeviceSampler
from pagetwin.engine.request import Request
from pagetwin.engine.sampler import SamplingRow
from pagetwin.engine.sampling_params import SamplingParams

REQUESTS = {
    "greedy": SamplingParams(temperature=0.0),
    "random": SamplingParams(temperature=1.0),
    "top_k and top_p": SamplingParams(temperature=0.8, top_k=50, top_p=0.95),
}


def sampling_cases(shapes: Shapes) -> Iterator[Case]:
    for vocab in dict.fromkeys(model.vocab for model in shapes.models):
        for rows in shapes.samples:
            for name, params in REQUESTS.items():
                yield _sample(name, params, rows, vocab)


def _sample(name: str, params: SamplingParams, rows: int, vocab: int) -> Case:
    def make(source: Source) -> Launch:
        sampler = DeviceSampler(vocab, rows, source.device)
        for row in range(rows):
            request = Request(request_id=str(row), prompt_token_ids=(1,), sampling_params=params)
            sampler.add(row, SamplingRow(f"{row}/0", request, 0, ()))
        words = np.zeros((sampler.num_words, rows), np.int32)
        all_rows = np.arange(rows)
        sampler.fill(words, all_rows, np.ones(rows, np.int64))
        on_device = torch.from_numpy(words).to(source.device)
        logits = source.normal(rows, vocab, scale=2.0, dtype=torch.float32)
        table = torch.zeros(rows, 8, dtype=torch.int32, device=source.device)
        out, failed = torch.zeros(2, rows, dtype=torch.int32, device=source.device)
        greedy = sampler.is_greedy(all_rows)
        return lambda: sampler.sample(logits, on_device, table, out, failed, greedy_only=greedy)

    return Case(
        kernel="sample",
        shape=f"{vocab}, {name}",
        rows=rows,
        num_bytes=4 * rows * vocab,
        flops=0,
        make=make,
    )
