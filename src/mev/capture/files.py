"""Reading of blocks and transactions from files and standard input.

Compression is detected by the first bytes, not by the name. A file is one JSON document, or one
document per line; lines are read one at a time, so that such a file may exceed the memory. Invalid
data becomes a :class:`~mev.capture.model.BadInputError` among the documents, and valid documents
are still read.
"""

import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson
import zstandard

from mev.capture.model import BadInputError

_GZIP, _ZSTD, _SKIPPABLE = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"
_MAGIC_BYTES = 4
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COMPRESSED_NAMES = frozenset({".gz", ".gzip", ".zst", ".zstd"})
# After this many invalid lines without a valid one, reading of the file stops.
_MOST_BAD_AT_START = 100
_SLOT_IN_NAME = re.compile(r"(?<!\d)(\d{6,12})(?!\d)")


@dataclass(frozen=True, slots=True)
class Document:
    """One JSON document with its place; ``slot`` is the slot in the file's name."""

    place: str
    value: Any
    slot: int | None = None


class Decompressor(Protocol):
    """Common interface of the single-stream decompressors of zlib and zstandard."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _Inflated(io.RawIOBase):
    """A decompressed stream; raises an error if the compressed data is truncated."""

    def __init__(self, source: BinaryIO, chunk_bytes: int) -> None:
        super().__init__()
        self._source = source
        self._chunk_bytes = chunk_bytes
        self._stream: Decompressor | None = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._compressed:
                self._compressed = self._source.read(self._chunk_bytes)
                if not self._compressed:
                    if self._stream is not None:
                        raise BadInputError(
                            "the compressed data ends too early: the file is truncated"
                        )
                    return 0
            if self._stream is None and not self._begin():
                return 0
            self._inflate()
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _begin(self) -> bool:
        """Begin the next stream; tell whether there is one. Files may be padded with zeros."""
        self._compressed = self._compressed.lstrip(b"\0")
        while len(self._compressed) < _MAGIC_BYTES and (
            more := self._source.read(self._chunk_bytes)
        ):
            self._compressed = (self._compressed + more).lstrip(b"\0")
        if self._compressed:
            self._stream = _decompressor(self._compressed)
        return self._stream is not None

    def _inflate(self) -> None:
        if self._stream is None:
            return
        try:
            self._ready = memoryview(self._stream.decompress(self._compressed))
        except (zlib.error, zstandard.ZstdError) as error:
            raise BadInputError(f"damaged compressed data: {error}") from None
        # A file may contain several streams in sequence.
        self._compressed = self._stream.unused_data if self._stream.eof else b""
        if self._stream.eof:
            self._stream = None


def _is_zstd(start: bytes) -> bool:
    """Return whether `start` begins a Zstandard frame: compressed data or a skippable frame.

    pzstd and the seekable format write skippable frames (RFC 8878 3.1.2).
    """
    return start.startswith(_ZSTD) or (start[1:_MAGIC_BYTES] == _SKIPPABLE and start[0] >> 4 == 5)


def _is_compressed(start: bytes) -> bool:
    return start.startswith(_GZIP) or _is_zstd(start)


def _decompressor(start: bytes) -> Decompressor:
    if start.startswith(_GZIP):
        return zlib.decompressobj(wbits=31)
    if _is_zstd(start):
        stream: Decompressor = zstandard.ZstdDecompressor().decompressobj()
        return stream
    raise BadInputError("neither gzip nor zstandard data follows the end of a compressed stream")


class Reader:
    """Reads documents with memory limits."""

    def __init__(self, *, max_document_bytes: int = 2 << 30, chunk_bytes: int = 1 << 20) -> None:
        """Set the maximum size of a decompressed document, and the read size."""
        self._max_document_bytes = max_document_bytes
        self._chunk_bytes = chunk_bytes

    def file(self, path: Path) -> Iterator[Document | BadInputError]:
        """Yield the documents of a file."""
        try:
            source = path.open("rb")
        except OSError as error:
            yield BadInputError(error.strerror or str(error), place=str(path))
            return
        with source:
            found = self.stream(source, str(path), slot=_slot_in(path.name))
            yield from _named_wrongly(found, path) if _claims_compression(path, source) else found

    def stream(
        self, source: BinaryIO, name: str, *, slot: int | None = None
    ) -> Iterator[Document | BadInputError]:
        """Yield the documents of an open stream; ``name`` is its name in errors."""
        buffered = (
            source
            if isinstance(source, io.BufferedReader)
            else io.BufferedReader(_Raw(source), self._chunk_bytes)
        )
        try:
            compressed = _is_compressed(buffered.peek(_MAGIC_BYTES))
        except OSError as error:
            yield BadInputError(error.strerror or str(error), place=name)
            return
        text = (
            io.BufferedReader(_Inflated(buffered, self._chunk_bytes), self._chunk_bytes)
            if compressed
            else buffered
        )
        yield from _settled(self._documents(text, name, slot))

    def _documents(
        self, text: BinaryIO, name: str, slot: int | None
    ) -> Iterator[Document | BadInputError]:
        lines = self._lines(text, name)
        first = next(lines, None)
        if first is None:
            yield BadInputError("empty", place=name)
            return
        if isinstance(first, BadInputError):
            yield first
            return
        number, line = first
        value = _parse(line, name, number)
        rest = (
            None if isinstance(value, BadInputError) and _may_continue(line) else next(lines, None)
        )
        if rest is None:
            yield from (
                self._whole(text, line, value, Document(name, None, slot))
                if isinstance(value, BadInputError)
                else (Document(name, value, slot),)
            )
            return
        yield (
            value if isinstance(value, BadInputError) else Document(f"{name}: line {number}", value)
        )
        yield from _each(rest, name)
        for each in lines:
            yield from _each(each, name)

    def _whole(
        self, stream: BinaryIO, line: bytes, error: BadInputError, at: Document
    ) -> Iterator[Document | BadInputError]:
        """Read a multi-line document; if it is invalid, try its lines as documents."""
        try:
            body = line + stream.read(self._max_document_bytes - len(line) + 1)
        except BadInputError as damaged:
            yield damaged.within(at.place)
            return
        if len(body) > self._max_document_bytes:
            yield BadInputError(
                f"a document larger than {self._max_document_bytes} bytes", place=at.place
            )
            return
        value = _parse(body, at.place, None)
        if not isinstance(value, BadInputError):
            yield Document(at.place, value, at.slot)
            return
        parsed = [
            each
            for number, text in enumerate(body.split(b"\n"), 1)
            for each in _each((number, text), at.place)
        ]
        if any(isinstance(each, Document) and isinstance(each.value, dict) for each in parsed):
            yield from parsed
        else:
            yield error if body == line else value

    def _lines(self, text: BinaryIO, name: str) -> Iterator[tuple[int, bytes] | BadInputError]:
        """Yield the numbered lines that are not blank; an error of the stream comes last."""
        number = 0
        while True:
            try:
                line = text.readline(self._max_document_bytes + 1)
            except BadInputError as error:
                yield error.within(f"{name}: line {number + 1}" if number else name)
                return
            except OSError as error:
                yield BadInputError(error.strerror or str(error), place=name)
                return
            if not line:
                return
            number += 1
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if len(line) > self._max_document_bytes:
                yield BadInputError(
                    f"a line longer than {self._max_document_bytes} bytes",
                    place=f"{name}: line {number}",
                )
                return
            if line.strip():
                yield number, line


class _Raw(io.RawIOBase):
    """Adapter that makes any binary stream bufferable."""

    def __init__(self, source: BinaryIO) -> None:
        super().__init__()
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _each(line: tuple[int, bytes] | BadInputError, name: str) -> Iterator[Document | BadInputError]:
    if isinstance(line, BadInputError):
        yield line
        return
    number, text = line
    if text.strip():
        value = _parse(text, name, number)
        yield (
            value if isinstance(value, BadInputError) else Document(f"{name}: line {number}", value)
        )


def _settled(found: Iterator[Document | BadInputError]) -> Iterator[Document | BadInputError]:
    """Yield the items; a file without any valid document yields only its first error."""
    held: list[BadInputError] = []
    good = False
    for each in found:
        if isinstance(each, Document):
            yield from held
            held, good = [], True
            yield each
        elif good:
            yield each
        elif len(held) == _MOST_BAD_AT_START:
            break
        else:
            held.append(each)
    yield from held[:1]


def _claims_compression(path: Path, source: io.BufferedReader) -> bool:
    """Return whether only the name of a file claims compression."""
    try:
        return path.suffix.lower() in _COMPRESSED_NAMES and not _is_compressed(
            source.peek(_MAGIC_BYTES)
        )
    except OSError:
        return False


def _named_wrongly(
    found: Iterator[Document | BadInputError], path: Path
) -> Iterator[Document | BadInputError]:
    """Yield the items; replace a single error by one about the file's name."""
    each = list(islice(found, 2))
    if len(each) == 1 and isinstance(each[0], BadInputError):
        each = [
            BadInputError(
                f"neither gzip nor zstandard data, which {path.suffix} in its name promises, "
                "nor JSON",
                place=str(path),
            )
        ]
    yield from each
    yield from found


def _parse(text: bytes, name: str, line: int | None) -> Any:
    """Return the value, or an error with its line and column."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        # Errors of truncated data are reported at the start of the next line.
        at_end = line is not None and error.lineno > 1
        column = len(text.rstrip().decode(errors="replace")) + 1 if at_end else error.colno
        return BadInputError(
            f"not JSON: {error.msg}", place=f"{name}: line {line or error.lineno}, column {column}"
        )


def _may_continue(line: bytes) -> bool:
    """Return whether an invalid line may be the start of a multi-line document."""
    text = line.strip()
    return text.startswith((b"{", b"[")) and not (text.startswith(b"{") and text.endswith(b"}"))


def _slot_in(name: str) -> int | None:
    found = _SLOT_IN_NAME.findall(name)
    return int(found[0]) if len(found) == 1 else None
