"""`py:MODULE:FACTORY`: an adapter that somebody else wrote, in this process."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagetwin.conformance.adapters.protocol import Adapter, AdapterError

REQUIRED = ("describe", "capabilities", "open", "close")


def make(target: str, options: Mapping[str, Any]) -> Adapter:
    """Calls FACTORY(**options); modules of the working directory are found, too.

    Raises AdapterError if there is no such factory, if it does not take the options, or if what
    it returns is no adapter.
    """
    module_name, colon, factory_name = target.partition(":")
    if not colon or not module_name or not factory_name:
        raise AdapterError(
            f"'py:{target}' names no factory; write py:MODULE:FACTORY, as in py:my.engine:make"
        )
    factory = _factory(module_name, factory_name)
    try:
        adapter = factory(**options)
    except TypeError as error:
        raise AdapterError(f"{module_name}.{factory_name} cannot be called so: {error}") from error
    lacking = [name for name in REQUIRED if not callable(getattr(adapter, name, None))]
    if lacking:
        raise AdapterError(
            f"{module_name}.{factory_name} returned {type(adapter).__name__}, which has no "
            f"{', '.join(lacking)}; see docs/adding_an_adapter.md"
        )
    made: Adapter = adapter
    return made


def _factory(module_name: str, factory_name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise AdapterError(
            f"there is no module {error.name!r} for 'py:{module_name}:{factory_name}'; run where "
            "it lies, or put it on PYTHONPATH"
        ) from None
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise AdapterError(f"module {module_name!r} has no callable {factory_name!r}")
    return factory
