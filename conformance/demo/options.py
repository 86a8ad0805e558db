"""What a user may choose of the demo, checked before anything is loaded."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from pagetwin.conformance.demo.workload import MIN_REQUESTS
from pagetwin.engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """`trace` None is the one that comes with the package. Raises ConfigError."""

    model: str = "SmolLM2-135M-Instruct"
    trace: Path | None = None
    num_requests: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_requests < MIN_REQUESTS:
            raise ConfigError(
                f"--requests {self.num_requests} is below {MIN_REQUESTS}; a shorter run does not "
                "bring the KV pool under pressure, so ask for more"
            )

    @property
    def command(self) -> str:
        """The command line that makes the same run."""
        words = ["pagetwin", "demo", "--requests", str(self.num_requests)]
        words += ["--seed", str(self.seed), "--model", self.model]
        words += ["--trace", str(self.trace)] if self.trace is not None else []
        return shlex.join(words)
