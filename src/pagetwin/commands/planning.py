"""What `pagetwin plan` does between its options and its answer."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagetwin.commands import knobs
from pagetwin.commands.progress import terminal_progress
from pagetwin.commands.writing import as_json_document
from pagetwin.conformance.environment import versions
from pagetwin.engine.errors import ConfigError
from pagetwin.reports.tables import Table, number
from pagetwin.simulator.cluster.deployment import Deployment
from pagetwin.simulator.costs.committed import committed_profiles
from pagetwin.simulator.costs.datasheets import gpu_named
from pagetwin.simulator.costs.known_models import config_named
from pagetwin.simulator.costs.model_shape import dtype_bytes, shape_of
from pagetwin.simulator.costs.profile import Profile, read_profile
from pagetwin.simulator.plan.answer import Answer, answer_of, shortfall
from pagetwin.simulator.plan.candidates import Choices
from pagetwin.simulator.plan.runners import LocalRunner, RayRunner, Resumed
from pagetwin.simulator.plan.search import Plan, Search
from pagetwin.simulator.plan.trial import Task, Trial
from pagetwin.simulator.results.slo import parse_slo
from pagetwin.simulator.statistics.deciding import MIN_SEEDS
from pagetwin.simulator.workloads.spec import parse_workload


def workload_spec(workload: str | None, trace: Path | None, requests: int | None) -> str:
    """The one that is given, as a spec; of a trace at most so many requests."""
    if (workload is None) == (trace is None):
        raise ConfigError("give either --workload SPEC or --trace FILE")
    if workload is None:
        return f"trace:file={trace}" + ("" if requests is None else f",requests={requests}")
    if requests is not None:
        raise ConfigError(f"--requests {requests} is of a --trace; write it into --workload")
    return workload


def parse_list(text: str, whole: str | None = None) -> tuple[str, ...]:
    """`a,b,c`; with `whole`, the name of an option whose parts are whole numbers above 0."""
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    for part in parts if whole else ():
        if not part.isdigit() or int(part) < 1:
            raise ConfigError(f"{whole} {text!r}: {part!r} is no number above 0; write 1,2,4")
    return parts


def parse_prices(texts: Sequence[str]) -> dict[str, float]:
    """`h100=2.5`: US dollars for a GPU and hour."""
    prices = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            price = float(value)
        except ValueError:
            price = -1.0
        if not 0 <= price < float("inf"):
            raise ConfigError(f"--price {text!r} is not GPU=USD, like h100=2.5")
        prices[gpu_named(name).name] = price
    return prices


def profiles_for(
    profile: Path | None, config: Mapping[str, Any], gpus: Sequence[str], dtype: str | None
) -> tuple[Profile, ...]:
    """Measured costs that candidates may use: a file's first, then those of this package.

    Raises ConfigError if the file's are of another model, or of none of the GPUs.
    """
    if profile == knobs.UNCALIBRATED:
        return ()
    shape = shape_of(config)
    known = tuple(one for one in committed_profiles() if shape_of(one.model_config) == shape)
    if profile is None:
        return known
    measured, refusals = read_profile(profile), []
    for gpu in gpus:
        try:
            Deployment(gpu=gpu, dtype=dtype).calibrated(measured, config, versions()["pagetwin"])
        except ConfigError as refusal:
            refusals.append(refusal)
        else:
            return measured, *known
    raise refusals[0]


@dataclass(frozen=True, kw_only=True)
class Planning:
    """What is asked."""

    workload: str
    model: str
    slo: str
    gpus: tuple[str, ...]
    tp: tuple[int, ...]
    kv_dtypes: tuple[str | None, ...]
    prices: dict[str, float]
    profile: Path | None
    max_gpus: int
    max_model_len: int | None
    wait_for_prefix: bool | None
    dtype: str | None
    confidence: float
    max_seeds: int
    trim: bool

    def run(self, out: Path | None, *, processes: int | None, on_ray: bool) -> tuple[Answer, str]:
        """The answer, and why nothing meets the objective ("" if something does)."""
        task = self._task()
        parse_workload(task.workload).begin(0)
        choices = Choices(gpus=self.gpus, tp=self.tp, kv_dtype=self.kv_dtypes)
        base = Deployment(
            **knobs.given(
                max_model_len=self.max_model_len,
                wait_for_prefix=self.wait_for_prefix,
                dtype=self.dtype,
            )
        )
        with ExitStack() as stack:
            trier: LocalRunner | RayRunner = (
                RayRunner(task) if on_ray else LocalRunner(task, processes)
            )
            stack.enter_context(trier)
            runner: LocalRunner | RayRunner | Resumed = trier
            if out is not None:
                runner = Resumed(trier, task, out / "trials.jsonl")
            progress = stack.enter_context(terminal_progress())
            progress.begin("trials", None)
            tried: list[Trial] = []

            def tell(trial: Trial) -> None:
                tried.append(trial)
                progress.advance_to(len(tried))

            search = Search(
                choices,
                runner,
                base=base,
                max_gpus=self.max_gpus,
                prices=self.prices,
                tell=tell,
            )
            found = search.run()
        return self._answered(task, found, out)

    def __post_init__(self) -> None:
        """Raises ConfigError for what no trial could be made of, or none would look at."""
        if not 0 < self.confidence < 1:
            raise ConfigError(
                f"--confidence {self.confidence} is not between 0 and 1; 0.95 is usual"
            )
        if self.max_seeds < MIN_SEEDS:
            raise ConfigError(
                f"--max-seeds {self.max_seeds} is below {MIN_SEEDS}; fewer runs decide nothing"
            )
        for dtype in filter(None, self.kv_dtypes):
            dtype_bytes(dtype)
        bought = {gpu_named(name).name for name in self.gpus}
        for name in self.prices:
            if name not in bought:
                raise ConfigError(f"--price is of {name}, which is none of --gpus")

    def _task(self) -> Task:
        config = config_named(self.model)
        return Task(
            workload=self.workload,
            model=config,
            slo=parse_slo(self.slo),
            confidence=self.confidence,
            max_seeds=self.max_seeds,
            trim=self.trim,
            profiles=profiles_for(self.profile, config, self.gpus, self.dtype),
        )

    def _answered(self, task: Task, found: Plan, out: Path | None) -> tuple[Answer, str]:
        answer = answer_of(
            found,
            task.slo,
            workload=self.workload,
            model=self.model,
            confidence=self.confidence,
        )
        if out is not None:
            from pagetwin.reports.plan_page import render_plan_page
            from pagetwin.reports.staging import staged

            with staged(out) as folder:
                (folder / "plan.json").write_bytes(as_json_document(answer))
                page = render_plan_page(answer, found, task.slo)
                (folder / "plan.html").write_text(page, "utf-8")
        return answer, "" if found.winner is not None else shortfall(found, task.slo)


def plan_text(answer: Answer) -> str:
    """All of an answer that people look at first."""
    rows = [
        [
            row["candidate"],
            number(row["price_per_h"]),
            row["outcome"],
            *(
                number(row["intervals"][name]["value"] * 1e3) if row["intervals"] else ""
                for name in answer.objective
            ),
            row["costs"].partition(":")[0],
        ]
        for row in answer.trials
        if row["load"] == 1
    ]
    values = (f"{name.partition('<')[0]}, ms" for name in answer.objective)
    table = Table(["configuration", "$/h", "outcome", *values, "costs"], rows)
    lines = [table.text(), ""]
    if answer.winner is None:
        return "\n".join(lines)
    gpus = "1 GPU" if answer.num_gpus == 1 else f"{answer.num_gpus} GPUs"
    lines.append(f"cheapest  {answer.winner}: {gpus}, ${answer.price_per_h:.2f}/h")
    lines.append(f"costs     {answer.costs}")
    if len({row["costs"].partition(":")[0] for row in answer.trials if row["costs"]}) > 1:
        lines.append(
            "caution   measured costs stand beside those of datasheets; --profile none compares "
            "like with like"
        )
    bears = f"load      meets the objective up to {answer.load_met:.3g} times"
    if answer.load_missed is not None:
        bears += f", not at {answer.load_missed:.3g}"
    if answer.load_saturated is not None:
        bears += f"; saturated at {answer.load_saturated:.3g}"
    lines.append(bears)
    lines += [
        f"headroom  {name}: {share:.0%} of the limit" for name, share in answer.headroom.items()
    ]
    lines += [
        f"rival     {rival.candidate}: ${rival.price_per_h:.2f}/h; cheapest below "
        f"${rival.break_even_price:.2f} for a GPU and hour"
        for rival in answer.rivals
    ]
    lines.append(f"command   {answer.command}")
    return "\n".join(lines)
