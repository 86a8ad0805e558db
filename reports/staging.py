"""When files become visible: all of them once a run is over, none of them if it fails."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A fresh folder to write into, on the same disk; its files move to `folder` at the end.

    Files of the same names are replaced, one rename each; others stay. If the body raises,
    nothing has changed, and `folder` is not even made. Raises OSError at once if `folder` is a file
    (NotADirectoryError) or nothing may be written there.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(20, "is a file; name a folder", str(folder))
    # In the folder itself if it is there: it may be a disk of its own, in one that is not ours.
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    try:
        staging = tempfile.TemporaryDirectory(dir=nearest, prefix=".pagetwin-")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(nearest)) from None
    with staging as temporary:
        yield Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(Path(temporary).iterdir()):
            os.replace(path, folder / path.name)
