"""Opening small files of a folder that may have come from anywhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from megatron_moo.errors import MooError


def regular_file(path: Path, where: Path | None = None) -> Path:
    """``path`` when it is a plain file of its folder; nothing is opened.

    A link is followed only where a Hugging Face cache puts its own: from ``snapshots/X/`` into the ``blobs/`` beside.

    Args:
        path: the file.
        where: what to name in the message when it was named by another file.

    Raises:
        MooError: for a file that is missing, a link out of the folder, a pipe, a device or a folder.
    """
    told = str(where or path)
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):
        raise MooError(f"file {path.name[:80]!r} is missing", told) from None
    if stat.S_ISLNK(mode):
        target = path.resolve()
        blobs = path.parent.resolve().parent.parent / "blobs"
        if target.parent != blobs or not stat.S_ISREG(target.lstat().st_mode if target.exists() else 0):
            raise MooError(
                f"file {path.name!r} is a link out of the checkpoint", told, "copy the file itself"
            )
        return path
    if not stat.S_ISREG(mode):
        raise MooError(f"{path.name!r} is not a regular file", told)
    return path


def small_bytes(path: Path, limit: int) -> bytes:
    """Content of a plain file of at most ``limit`` bytes.

    Raises:
        MooError: as :func:`regular_file`, and for a larger file.
    """
    regular_file(path)
    try:
        if path.stat().st_size > limit:
            raise MooError(f"is larger than {limit >> 20} MiB", str(path))
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise MooError(f"cannot be read ({error.strerror})", str(path)) from None
