"""Tasks run in copies of this process: each once, and nothing of them stays but what they wrote."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pagetwin.kernels.forked import run_forked

Task = Callable[[], object]


def leave(place: Path, number: int) -> None:
    with (place / f"{number} {os.getpid()}").open("x"):
        time.sleep(0.01)


def left(place: Path) -> tuple[list[int], set[int]]:
    """Numbers of tasks, and ids of processes."""
    words = [path.name.split() for path in place.iterdir()]
    return sorted(int(number) for number, _ in words), {int(process) for _, process in words}


def test_every_task_runs_once_in_one_of_several_copies(tmp_path: Path) -> None:
    run_forked([partial(leave, tmp_path, n) for n in range(300)], max_processes=3)
    numbers, processes = left(tmp_path)
    assert numbers == list(range(300))
    assert len(processes) == 3
    assert os.getpid() not in processes


def test_an_error_of_a_task_is_no_errors_of_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError("not printed")

    tasks: list[Task] = [fail, partial(leave, tmp_path, 1), fail, partial(leave, tmp_path, 2)]
    run_forked(tasks, max_processes=2)
    assert left(tmp_path)[0] == [1, 2]
    assert "not printed" not in "".join(capfd.readouterr())


def test_a_task_that_ends_its_copy_leaves_the_rest_to_the_others(tmp_path: Path) -> None:
    tasks: list[Task] = [partial(os._exit, 3), *(partial(leave, tmp_path, n) for n in range(10))]
    run_forked(tasks, max_processes=2)
    assert left(tmp_path)[0] == list(range(10))


def test_a_copy_that_hangs_is_ended_with_a_warning(tmp_path: Path) -> None:
    tasks: list[Task] = [
        partial(time.sleep, 600),
        *(partial(leave, tmp_path, n) for n in range(10)),
    ]
    started = time.monotonic()
    with pytest.warns(UserWarning, match=r"^1 of the processes .* took over 1 s"):
        run_forked(tasks, max_processes=2, patience_s=1.0)
    assert time.monotonic() - started < 60
    assert left(tmp_path)[0] == list(range(10))


def test_one_task_is_not_worth_a_copy(tmp_path: Path) -> None:
    run_forked([partial(leave, tmp_path, 0)])
    assert left(tmp_path)[0] == []
