"""Checkpoints on disk: what is complete, what is undamaged, whose files they are, and which may be deleted.

A checkpoint (``iter_0000050/``) is complete once :data:`CHECKSUMS` lies in it, which is written last and in one
piece. It is in the format of ``sha256sum``, so that ``sha256sum -c checksums.sha256`` checks it without us; its last
line, a comment to that program, holds the digest of the lines above. It stops accidents, not an attacker: whoever can
change a checkpoint can change its checksums too.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from megatron_moo.errors import MooError

CHECKSUMS = "checksums.sha256"
TRACKER = "latest_checkpointed_iteration.txt"
_CLOSING = "# sha256 of the lines above: "
_DELETING = ".deleting-"
_COMPLETE = "metadata.json"  # Megatron's own last file, before ours
_CHUNK = 1 << 22
_THREADS = 8


def step_folder(folder: Path, step: int) -> Path:
    """Where Megatron keeps the checkpoint of a step."""
    return folder / f"iter_{step:07d}"


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader, or the next start after a crash, sees all of it or what was there before."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_checksums(checkpoint: Path) -> None:
    """Hash every file of a checkpoint as it lies on the disk, and thereby declare it complete.

    Raises:
        MooError: for a file name that a line cannot hold.
    """
    names = _files(checkpoint)
    for name in names:
        if "\n" in name or "\\" in name:
            raise MooError(f"{name!r} cannot be listed", str(checkpoint))
    digests = _digests(checkpoint, names)
    body = "".join(f"{digest}  {name}\n" for name, digest in zip(names, digests, strict=True))
    write_atomically(checkpoint / CHECKSUMS, f"{body}{_CLOSING}{_hash(body.encode())}\n")


def read_checksums(checkpoint: Path) -> dict[str, str]:
    """File name to SHA-256 of every file of a checkpoint.

    Raises:
        MooError: naming the list, when it is damaged.
    """
    path = checkpoint / CHECKSUMS
    data = path.read_bytes()
    body, mark, closing = data.rpartition(_CLOSING.encode())
    found = [
        re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line) for line in body.decode("utf-8", "replace").splitlines()
    ]
    if not mark or closing != f"{_hash(body)}\n".encode() or not all(found):
        raise MooError("the list of checksums is damaged", str(path), _todo(checkpoint))
    return {match[2]: match[1] for match in found if match is not None}


def damaged(checkpoint: Path, part: int = 0, parts: int = 1) -> list[str]:
    """Files of a checkpoint that are not what was saved, among those that fall to ``part`` of ``parts``.

    Raises:
        MooError: when the list of checksums itself is damaged.
    """
    listed = read_checksums(checkpoint)
    names = sorted(listed)[part::parts]
    there = [name for name in names if (checkpoint / name).is_file()]
    digests = dict(zip(there, _digests(checkpoint, there), strict=True))
    return [name for name in names if digests.get(name) != listed[name]]


def damage_error(checkpoint: Path, names: Sequence[str]) -> MooError:
    """The refusal of a checkpoint whose files ``names`` are damaged."""
    more = f" (and {len(names) - 1} other files)" if len(names) > 1 else ""
    gone = "is missing" if not (checkpoint / names[0]).exists() else "is damaged: it is not what was saved"
    return MooError(f"{gone}{more}", str(checkpoint / names[0]), _todo(checkpoint))


def verify(checkpoint: Path) -> None:
    """Refuse a damaged checkpoint.

    Raises:
        MooError: naming the file.
    """
    if names := damaged(checkpoint):
        raise damage_error(checkpoint, names)


def _todo(checkpoint: Path) -> str:
    others = [
        step
        for step in complete_steps(checkpoint.parent)
        if step_folder(checkpoint.parent, step) != checkpoint
    ]
    if not others:
        return "restore it, or move its folder away to start again"
    return f"restore it, or move its folder away to go on from step {others[-1]}"


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints with checksums, ascending."""
    return [step for step, checkpoint in _steps(folder) if (checkpoint / CHECKSUMS).is_file()]


def choose_step(folder: Path) -> int | str | None:
    """The step that a run in ``folder`` goes on from: the newest complete one.

    The tracker file is not asked where there are checksums: it may be torn, empty, or older than a checkpoint that was
    complete when the run was killed. A checkpoint without checksums (Megatron's own) counts where the tracker names it.

    Returns:
        the step, ``"release"`` for an imported model, or None where nothing was saved yet.

    Raises:
        MooError: when something was saved and nothing of it is complete.
    """
    steps = complete_steps(folder)
    told = read_tracker(folder)
    if isinstance(told, int) and (step_folder(folder, told) / _COMPLETE).is_file():
        steps.append(told)
    if steps:
        return max(steps)
    if told == "release":
        return told
    if told is not None:
        said = f"names step {told}, which is not complete" if isinstance(told, int) else "is damaged"
        raise MooError(
            f"{said}, and no other checkpoint is complete",
            str(folder / TRACKER),
            "move the folder away to start again",
        )
    return None


def read_tracker(folder: Path) -> int | str | None:
    """What the tracker file says: a step, ``"release"``, ``"damaged"``, or None without one."""
    try:
        text = (folder / TRACKER).read_bytes()[:100].decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return None
    if text == "release":
        return text
    return int(text) if re.fullmatch(r"\d{1,18}", text) else "damaged"


def incomplete(folder: Path) -> list[str]:
    """Names of checkpoints that a save began and did not end."""
    return [
        path.name
        for _, path in _steps(folder)
        if not any((path / n).is_file() for n in (CHECKSUMS, _COMPLETE))
    ]


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint so that no half of it can be taken for a whole one. Nothing happens where there is none."""
    if not checkpoint.exists() or checkpoint.is_symlink():
        return
    away = checkpoint.with_name(_DELETING + checkpoint.name)
    if away.exists():
        shutil.rmtree(away)
    checkpoint.replace(away)
    shutil.rmtree(away)


def prune(folder: Path, keep: int) -> list[str]:
    """Delete all but the newest ``keep`` complete checkpoints, and halves older than those.

    Returns:
        why something could not be deleted, a line each: that is no reason to end a run.
    """
    steps = complete_steps(folder)
    if keep < 1 or not steps:
        return []
    kept, failures = steps[-keep:], []
    for path in folder.glob(f"{_DELETING}iter_*"):
        failures += _attempt(shutil.rmtree, path)
    for step, path in _steps(folder):
        if step not in kept and step < kept[-1] and not path.is_symlink():
            failures += _attempt(discard, path)
    return failures


def _attempt(action: Callable[[Path], None], path: Path) -> list[str]:
    try:
        action(path)
    except OSError as error:
        return [f"{path}: could not be deleted ({error.strerror or error})"]
    return []


def check_owner(settings: Mapping[str, Any], trusted: bool) -> None:
    """Refuse to load another user's files: a checkpoint is a pickle in parts, and reading it can run code in it.

    Args:
        settings: flags; ``load`` and ``pretrained-checkpoint`` name folders of checkpoints.
        trusted: nothing is refused.

    Raises:
        MooError: naming a file and whose it is.
    """
    for name in () if trusted else ("load", "pretrained-checkpoint"):
        folder = Path(settings.get(name) or "")
        found = foreign_owner(folder) if settings.get(name) and folder.is_dir() else None
        if found is not None:
            raise MooError(
                f"belongs to user {found[1]}, not to {os.geteuid()}; loading a checkpoint can run code that lies in it",
                str(found[0]),
                "use --moo-trust-load if you trust that user",
            )


def foreign_owner(folder: Path) -> tuple[Path, int] | None:
    """The first file in a folder that belongs to another user, and that user's number; None when all are ours."""
    mine = os.geteuid()
    for path in (folder, *sorted(folder.rglob("*"))):
        if (owner := path.lstat().st_uid) != mine:
            return path, owner
        if path.exists() and (owner := path.stat().st_uid) != mine:  # behind a link
            return path, owner
    return None


def _steps(folder: Path) -> list[tuple[int, Path]]:
    found = [(re.fullmatch(r"iter_(\d+)", path.name), path) for path in folder.glob("iter_*")]
    return sorted((int(match[1]), path) for match, path in found if match is not None and path.is_dir())


def _files(checkpoint: Path) -> list[str]:
    own = {CHECKSUMS, CHECKSUMS + ".tmp"}
    paths = (path for path in checkpoint.rglob("*") if path.is_file())
    return sorted(name for path in paths if (name := path.relative_to(checkpoint).as_posix()) not in own)


def _digests(checkpoint: Path, names: Sequence[str]) -> list[str]:
    # hashlib lets go of the interpreter while it hashes, so threads are enough.
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
        return list(threads.map(lambda name: _file_hash(checkpoint / name), names))


def _file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
