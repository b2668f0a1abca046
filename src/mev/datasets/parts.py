"""One file of an export: verified, compressed if the engine does not, hashed, and synced to disk.

The embedded engine does not report failed writes: its file is valid only after it has been read.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import zstandard

from mev.core.files import DiskFullError, free_bytes
from mev.datasets.catalog import Format
from mev.datasets.errors import IncompletePartError
from mev.datasets.query import Query

ENGINE_FORMATS = {
    Format.PARQUET: "Parquet",
    Format.ARROW: "Arrow",
    Format.CSV: "CSVWithNames",
    Format.NDJSON: "JSONEachRow",
}
_SUFFIXES = {"gzip": ".gz", "zstd": ".zst"}
_COPY_BYTES = 1 << 20
_FULL_BYTES = 1 << 20  # with less free space, the engine's buffer could not be written
_PARQUET_TAIL_BYTES = 8  # length of the footer and the magic number
_GZIP = 31  # zlib's value for gzip with the largest window, without a time stamp


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def name(query: Query, number: int) -> str:
    """Return the file name of a part."""
    packed = (
        _SUFFIXES.get(query.compression, "") if query.format in {Format.CSV, Format.NDJSON} else ""
    )
    return f"part-{number:05}.{query.format}{packed}"


def engine_settings(query: Query, *, memory_bytes: int) -> dict[str, Any]:
    """Return the engine's settings for writing a part."""
    # A cell's expression may have the name of the column in ORDER BY.
    settings: dict[str, Any] = {"max_memory_usage": memory_bytes, "prefer_column_name_to_alias": 1}
    if query.format is Format.PARQUET:
        settings["output_format_parquet_compression_method"] = query.compression
    elif query.format is Format.ARROW:
        settings["output_format_arrow_compression_method"] = {"lz4": "lz4_frame"}.get(
            query.compression, query.compression
        )
        settings["output_format_arrow_string_as_string"] = 1
        # Arrow record batches are the engine's blocks; they must not depend on the disk layout.
        settings |= {"optimize_read_in_order": 0, "max_threads": 1}
    else:
        settings |= {
            "output_format_json_quote_64bit_integers": 0,
            "output_format_json_quote_denormals": 0,
        }
    return settings


def finish(
    raw: Path, target: Path, query: Query, rows: int, check: Callable[[], None]
) -> tuple[int, str]:
    """Convert the engine's output `raw` into `target`, removing `raw`; return its size and SHA-256.

    `check` raises if the export is cancelled.

    :raises DiskFullError, IncompletePartError: if `raw` is not a complete file of `rows` rows.
    """
    _check_rows(raw, target, query, rows, check)
    compressor = _compressor(query)
    if isinstance(compressor, _Plain):
        size, digest = _digested(raw, check)
        raw.replace(target)
        return size, digest
    packed = raw.with_suffix(".packed")
    written = _pack(raw, packed, compressor, check)
    size, digest = _digested(packed, check)
    if digest != written:
        raise IncompletePartError(
            f"{target}: what is on the disk is not what was written; "
            "check that disk, then export again"
        )
    packed.replace(target)
    raw.unlink()
    return size, digest


def _check_rows(
    raw: Path, target: Path, query: Query, rows: int, check: Callable[[], None]
) -> None:
    found = _COUNTS[query.format](raw, check)
    if found == rows:
        return
    if (free := free_bytes(raw.parent)) < _FULL_BYTES:
        raise DiskFullError(
            f"{target} cannot be written: {free} bytes are free on that disk; "
            "free space, or set EXPORT_DIR to another disk",
            path=str(target),
        )
    what = "is cut off" if found is None else f"has {found} rows"
    raise IncompletePartError(
        f"{target} {what} of {rows} rows; if the disk was full or a quota was reached, free space, "
        "then export again"
    )


def _parquet_rows(path: Path, _check: Callable[[], None]) -> int | None:
    """Return the number of rows in the footer, None if the file is truncated."""
    import pyarrow as pa  # noqa: PLC0415 - large, and only needed during exports
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return None
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    end = max(
        (
            _chunk_end(group.column(number))
            for group in groups
            for number in range(group.num_columns)
        ),
        default=0,
    )
    return (
        int(metadata.num_rows)
        if end + metadata.serialized_size + _PARQUET_TAIL_BYTES <= path.stat().st_size
        else None
    )


def _chunk_end(chunk: Any) -> int:
    """Return the end offset of a column chunk in its file."""
    first = chunk.data_page_offset
    if chunk.has_dictionary_page:
        first = min(first, chunk.dictionary_page_offset)
    return int(first + chunk.total_compressed_size)


def _arrow_rows(path: Path, check: Callable[[], None]) -> int | None:
    import pyarrow as pa  # noqa: PLC0415 - as above

    rows = 0
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
            for number in range(file.num_record_batches):
                check()
                rows += file.get_batch(number).num_rows
    except (pa.ArrowException, OSError):
        return None
    return rows


def _line_count(path: Path, check: Callable[[], None]) -> int | None:
    """Return the number of lines, None if the last one is incomplete."""
    lines, last = 0, b""
    for chunk in _chunks(path, check):
        lines, last = lines + chunk.count(b"\n"), chunk[-1:]
    return lines if last in {b"", b"\n"} else None


def _csv_rows(path: Path, check: Callable[[], None]) -> int | None:
    """Return the number of records below the header; quoted fields may contain line breaks."""
    lines, quotes, last = 0, 0, b""
    for chunk in _chunks(path, check):
        pieces = chunk.split(b'"')
        lines += sum(piece.count(b"\n") for piece in pieces[quotes % 2 :: 2])
        quotes, last = quotes + len(pieces) - 1, chunk[-1:]
    return lines - 1 if last == b"\n" and quotes % 2 == 0 else None


_COUNTS: dict[Format, Callable[[Path, Callable[[], None]], int | None]] = {
    Format.PARQUET: _parquet_rows,
    Format.ARROW: _arrow_rows,
    Format.CSV: _csv_rows,
    Format.NDJSON: _line_count,
}


def _chunks(path: Path, check: Callable[[], None]) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_COPY_BYTES):
            check()
            yield chunk


def _pack(raw: Path, packed: Path, compressor: _Compressor, check: Callable[[], None]) -> str:
    """Compress `raw` into `packed`; return the SHA-256 of the written bytes."""
    digest = hashlib.sha256()
    try:
        with packed.open("wb") as file:
            for chunk in _chunks(raw, check):
                piece = compressor.compress(chunk)
                digest.update(piece)
                file.write(piece)
            piece = compressor.flush()
            digest.update(piece)
            file.write(piece)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(packed)) from None
    return digest.hexdigest()


def _compressor(query: Query) -> _Compressor:
    if query.format in {Format.CSV, Format.NDJSON}:
        if query.compression == "gzip":
            return zlib.compressobj(6, wbits=_GZIP)
        if query.compression == "zstd":
            return zstandard.ZstdCompressor(level=3).compressobj()
    return _Plain()


def _digested(path: Path, check: Callable[[], None]) -> tuple[int, str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_COPY_BYTES):
            check()
            digest.update(chunk)
        try:
            os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        return file.tell(), digest.hexdigest()
