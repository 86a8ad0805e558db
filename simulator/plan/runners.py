"""Where trials run: here, in processes of this machine, or on Ray; and what was tried before."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from pagetwin.engine.errors import ConfigError
from pagetwin.simulator.local_processes import LocalProcesses
from pagetwin.simulator.plan.candidates import Candidate
from pagetwin.simulator.plan.trial import Task, Trial, try_candidate

Key = tuple[Candidate, float]


class LocalRunner:
    """Trials in so many processes; 1: in this one."""

    def __init__(self, task: Task, num_processes: int | None = None) -> None:
        self._task = task
        self._processes = LocalProcesses(num_processes)

    def __enter__(self) -> Self:
        self._processes.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._processes.__exit__(kind, error, where)

    def run(self, tasks: Sequence[Key]) -> list[Trial]:
        return list(self._processes.starmap(try_candidate, [(self._task, *key) for key in tasks]))


class RayRunner:
    """Trials as tasks of a Ray cluster, the one that RAY_ADDRESS names or a local one.

    Raises ConfigError if Ray is not installed.
    """

    def __init__(self, task: Task) -> None:
        try:
            import ray  # type: ignore[import-not-found]
        except ImportError:
            raise ConfigError(
                "--ray needs Ray, which is not installed; pip install 'pagetwin[ray]', or leave "
                "--ray out to use the processors of this machine"
            ) from None
        self._ray: Any = ray
        ray.init(ignore_reinit_error=True, log_to_driver=False)
        self._task = ray.put(task)
        self._try = ray.remote(try_candidate)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()

    def run(self, tasks: Sequence[Key]) -> list[Trial]:
        found: list[Trial] = self._ray.get([self._try.remote(self._task, *key) for key in tasks])
        return found


class _Line(msgspec.Struct, frozen=True):
    """One trial in a file of them."""

    candidate: Candidate
    factor: float
    trial: Trial


class Resumed:
    """A runner that writes each trial down and does not repeat those in the file.

    The file is JSON Lines; its first line is the task, so that trials of another one are never
    taken for this one's (ConfigError). A last line that was cut off is left out; another that
    cannot be read is refused, too.
    """

    def __init__(self, runner: LocalRunner | RayRunner, task: Task, path: Path) -> None:
        self._runner = runner
        self._path = path
        self._known: dict[Key, Trial] = {}
        header = msgspec.json.encode(task)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(header + b"\n")
            return
        first, *lines = path.read_bytes().split(b"\n")
        if first != header:
            raise ConfigError(
                f"{path} holds trials of another workload, model, objective or profile; remove it, "
                "or name another folder"
            )
        for place, line in enumerate(lines[:-1], start=2):
            try:
                entry = msgspec.json.decode(line, type=_Line)
            except msgspec.DecodeError as error:
                raise ConfigError(
                    f"{path}:{place}: not a trial ({error}); the file is damaged: remove it, or "
                    "name another folder"
                ) from None
            self._known[entry.candidate, entry.factor] = entry.trial
        # What follows the last line break was cut off while it was written.
        path.write_bytes(b"\n".join([first, *lines[:-1], b""]))

    @property
    def num_known(self) -> int:
        return len(self._known)

    def run(self, tasks: Sequence[Key]) -> list[Trial]:
        new = [key for key in tasks if key not in self._known]
        with self._path.open("ab") as file:
            for key, trial in zip(new, self._runner.run(new), strict=True):
                self._known[key] = trial
                file.write(msgspec.json.encode(_Line(*key, trial)) + b"\n")
        return [self._known[key] for key in tasks]
