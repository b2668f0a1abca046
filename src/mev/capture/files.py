"""Read blocks and transactions from files and from standard input.

Compression is recognised by its first bytes, never by the name. A file is either one JSON document or one document a
line; lines are read one at a time, so a file of lines may be larger than memory. Whatever cannot be read comes out as a
:class:`~mev.capture.model.BadInputError` in its place among the documents, so that the good ones are kept.
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

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_COMPRESSED_NAMES = frozenset({".gz", ".gzip", ".zst", ".zstd"})
# After that many bad lines and no good one, a file is taken to be something else.
_MOST_BAD_AT_START = 100
_SLOT_IN_NAME = re.compile(r"(?<!\d)(\d{6,12})(?!\d)")


@dataclass(frozen=True, slots=True)
class Document:
    """One JSON document and where it came from; ``slot`` is what the file's name says, for a block that does not."""

    place: str
    value: Any
    slot: int | None = None


class Decompressor(Protocol):
    """What zlib's and zstandard's one-stream decompressors have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _Inflated(io.RawIOBase):
    """A compressed stream, read as what it holds; ends with an error where the compressed data stops short."""

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
                        raise BadInputError("the compressed data ends too early: the file is truncated")
                    return 0
            self._inflate()
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _inflate(self) -> None:
        if self._stream is None:
            self._stream = _decompressor(self._compressed)
        try:
            self._ready = memoryview(self._stream.decompress(self._compressed))
        except (zlib.error, zstandard.ZstdError) as error:
            raise BadInputError(f"damaged compressed data: {error}") from None
        # A file may hold several streams one after the other; the next starts where this one ends.
        self._compressed = self._stream.unused_data if self._stream.eof else b""
        if self._stream.eof:
            self._stream = None


def _decompressor(start: bytes) -> Decompressor:
    if start.startswith(_GZIP):
        return zlib.decompressobj(wbits=31)
    if start.startswith(_ZSTD):
        stream: Decompressor = zstandard.ZstdDecompressor().decompressobj()
        return stream
    raise BadInputError("neither gzip nor zstandard data follows the end of a compressed stream")


class Reader:
    """Reads documents; the limits bound what one file may make the process hold."""

    def __init__(self, *, max_document_bytes: int = 2 << 30, chunk_bytes: int = 1 << 20) -> None:
        """Set the limits: the largest document, decompressed, and how much is read at a time."""
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

    def stream(self, source: BinaryIO, name: str, *, slot: int | None = None) -> Iterator[Document | BadInputError]:
        """Yield the documents of an open stream; ``name`` is what errors call it."""
        buffered = source if isinstance(source, io.BufferedReader) else io.BufferedReader(_Raw(source), self._chunk_bytes)
        try:
            compressed = buffered.peek(4)[:4].startswith((_GZIP, _ZSTD))
        except OSError as error:
            yield BadInputError(error.strerror or str(error), place=name)
            return
        text = io.BufferedReader(_Inflated(buffered, self._chunk_bytes), self._chunk_bytes) if compressed else buffered
        yield from _settled(self._documents(text, name, slot))

    def _documents(self, text: BinaryIO, name: str, slot: int | None) -> Iterator[Document | BadInputError]:
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
        rest = None if isinstance(value, BadInputError) and _may_continue(line) else next(lines, None)
        if rest is None:
            yield from (
                self._whole(text, line, value, Document(name, None, slot))
                if isinstance(value, BadInputError)
                else (Document(name, value, slot),)
            )
            return
        yield value if isinstance(value, BadInputError) else Document(f"{name}: line {number}", value)
        yield from _each(rest, name)
        for each in lines:
            yield from _each(each, name)

    def _whole(self, stream: BinaryIO, line: bytes, error: BadInputError, at: Document) -> Iterator[Document | BadInputError]:
        """Read a document that spans lines; when it is none after all, its lines may still hold good ones."""
        try:
            body = line + stream.read(self._max_document_bytes - len(line) + 1)
        except BadInputError as damaged:
            yield damaged.within(at.place)
            return
        if len(body) > self._max_document_bytes:
            yield BadInputError(f"a document larger than {self._max_document_bytes} bytes", place=at.place)
            return
        value = _parse(body, at.place, None)
        if not isinstance(value, BadInputError):
            yield Document(at.place, value, at.slot)
            return
        parsed = [each for number, text in enumerate(body.split(b"\n"), 1) for each in _each((number, text), at.place)]
        if any(isinstance(each, Document) and isinstance(each.value, dict) for each in parsed):
            yield from parsed
        else:
            yield error if body == line else value

    def _lines(self, text: BinaryIO, name: str) -> Iterator[tuple[int, bytes] | BadInputError]:
        """Yield the lines that are not blank, numbered; a stream that breaks off yields its error last."""
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
            if len(line) > self._max_document_bytes:
                yield BadInputError(f"a line longer than {self._max_document_bytes} bytes", place=f"{name}: line {number}")
                return
            if line.strip():
                yield number, line


class _Raw(io.RawIOBase):
    """Lets any binary stream be buffered."""

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
        yield value if isinstance(value, BadInputError) else Document(f"{name}: line {number}", value)


def _settled(found: Iterator[Document | BadInputError]) -> Iterator[Document | BadInputError]:
    """Yield what was found; a file without one good document is bad as a whole, which its first error says."""
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
    """Tell whether only a file's name says that it is compressed."""
    try:
        return path.suffix.lower() in _COMPRESSED_NAMES and not source.peek(4)[:4].startswith((_GZIP, _ZSTD))
    except OSError:
        return False


def _named_wrongly(found: Iterator[Document | BadInputError], path: Path) -> Iterator[Document | BadInputError]:
    """Yield what was found; where that is nothing but an error, it is the name that misleads."""
    each = list(islice(found, 2))
    if len(each) == 1 and isinstance(each[0], BadInputError):
        each = [BadInputError(f"neither gzip nor zstandard data, which {path.suffix} in its name promises, nor JSON", place=str(path))]
    yield from each
    yield from found


def _parse(text: bytes, name: str, line: int | None) -> Any:
    """Return the value, or the error that names its line and column."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        # Data that ends too early is told at the start of the next line, which is not where to look.
        at_end = line is not None and error.lineno > 1
        column = len(text.rstrip().decode(errors="replace")) + 1 if at_end else error.colno
        return BadInputError(f"not JSON: {error.msg}", place=f"{name}: line {line or error.lineno}, column {column}")


def _may_continue(line: bytes) -> bool:
    """Tell whether a line that is no document can be the start of one: a whole record with a fault in it cannot."""
    text = line.strip()
    return text.startswith((b"{", b"[")) and not (text.startswith(b"{") and text.endswith(b"}"))


def _slot_in(name: str) -> int | None:
    found = _SLOT_IN_NAME.findall(name)
    return int(found[0]) if len(found) == 1 else None
