"""The one exception that a user is meant to read."""

from __future__ import annotations


class MooError(Exception):
    """A mistake in the input, told in one line.

    Args:
        what: what is wrong, with the offending value and what was expected.
        where: the file, place or flag that it concerns.
        todo: what to do about it.

    ``str(error)`` is ``where: what; todo``. The command line prints it to stderr and exits with status 2.
    """

    def __init__(self, what: str, where: str | None = None, todo: str | None = None) -> None:
        self.what, self.where, self.todo = what, where, todo
        line = f"{where}: {what}" if where else what
        if todo:
            line = f"{line}; {todo}"
        super().__init__(" ".join(line.split()))
