"""Reading .zst files in bounded memory; one that ends early is an error, never the end of the data."""

from __future__ import annotations

from typing import Any, BinaryIO

_MAGIC, _SKIPPABLE = 0xFD2FB528, 0x184D2A50
_LONGEST_HEADER = 18


class ZstdReader:
    """The decompressed bytes of an open file, frame after frame.

    Raises:
        OSError: the data is damaged.
        EOFError: the file ends inside a frame (the library would take that for the end of the data).
    """

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        _check_complete(file, zstandard)
        self._reader: Any = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer at the end only."""
        pieces, left = [], count
        try:
            while left and (piece := self._reader.read(left)):
                pieces.append(piece)
                left -= len(piece)
        except self._error as error:
            raise OSError(f"zstd: {error}") from error
        return b"".join(pieces)


def _check_complete(file: BinaryIO, zstandard: Any) -> None:
    """Walk over the frames and their blocks by their headers alone (RFC 8878); the file is left at its start."""
    size, at = file.seek(0, 2), 0
    while at < size:
        file.seek(at)
        head = file.read(_LONGEST_HEADER)
        magic = int.from_bytes(head[:4], "little")
        if magic & 0xFFFFFFF0 == _SKIPPABLE and len(head) >= 8:
            at += 8 + int.from_bytes(head[4:8], "little")
        elif magic == _MAGIC:
            at = _frame_end(file, at, head, zstandard)
        else:
            break  # no frame: the reader says so when it comes there
    if at > size:
        raise EOFError("the last zstd frame is not complete")
    file.seek(0)


def _frame_end(file: BinaryIO, at: int, head: bytes, zstandard: Any) -> int:
    try:
        checksum = zstandard.get_frame_parameters(head).has_checksum
        at += zstandard.frame_header_size(head)
    except zstandard.ZstdError as error:
        raise EOFError(f"a zstd frame has no complete header ({error})") from error
    last = False
    while not last:
        file.seek(at)
        header = file.read(3)
        if len(header) < 3:
            raise EOFError("the last zstd frame is not complete")
        word = int.from_bytes(header, "little")
        last, repeated, length = bool(word & 1), (word >> 1) & 3 == 1, word >> 3
        at += 3 + (1 if repeated else length)
    return at + 4 * bool(checksum)
