"""Reads the JSON files that come with a model."""

import json
from pathlib import Path
from typing import Any

from pagetwin.engine.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ModelError if the file cannot be read as one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}; fetch the model again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object; fetch the model again")
    return content
