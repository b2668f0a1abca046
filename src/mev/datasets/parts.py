"""One file of an export: the engine's bytes, compressed where the format leaves that to us, digested, and on the disk."""

import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import zstandard

from mev.datasets.query import Format, Query

ENGINE_FORMATS = {Format.PARQUET: "Parquet", Format.ARROW: "Arrow", Format.CSV: "CSVWithNames", Format.NDJSON: "JSONEachRow"}
_SUFFIXES = {"gzip": ".gz", "zstd": ".zst"}
_COPY_BYTES = 1 << 20
_GZIP = 31  # zlib's word for gzip with the largest window; its header has no time in it


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def name(query: Query, number: int) -> str:
    """Return the name of a part's file."""
    packed = _SUFFIXES.get(query.compression, "") if query.format in {Format.CSV, Format.NDJSON} else ""
    return f"part-{number:05}.{query.format}{packed}"


def engine_settings(query: Query, *, memory_bytes: int) -> dict[str, Any]:
    """Return the engine's settings for the rows of a part."""
    settings: dict[str, Any] = {"max_memory_usage": memory_bytes}
    if query.format is Format.PARQUET:
        settings["output_format_parquet_compression_method"] = query.compression
    elif query.format is Format.ARROW:
        settings["output_format_arrow_compression_method"] = {"lz4": "lz4_frame"}.get(query.compression, query.compression)
        settings["output_format_arrow_string_as_string"] = 1
        # Its record batches are the engine's blocks, which must not depend on how the table lies on the disk.
        settings |= {"optimize_read_in_order": 0, "max_threads": 1}
    elif query.format is Format.NDJSON:
        settings |= {"output_format_json_quote_64bit_integers": 0, "output_format_json_quote_denormals": 0}
    return settings


def finish(raw: Path, target: Path, query: Query, check: Callable[[], None]) -> tuple[int, str]:
    """Make `target` of what the engine wrote to `raw`, which goes; return its size and SHA-256. `check` raises when it is not wanted."""
    compressor = _compressor(query)
    if isinstance(compressor, _Plain):
        size, digest = _digested(raw, check)
        raw.replace(target)
        return size, digest
    packed = raw.with_suffix(".packed")
    with raw.open("rb") as source, packed.open("wb") as file:
        while chunk := source.read(_COPY_BYTES):
            check()
            file.write(compressor.compress(chunk))
        file.write(compressor.flush())
    size, digest = _digested(packed, check)
    packed.replace(target)
    raw.unlink()
    return size, digest


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
        os.fsync(file.fileno())
        return file.tell(), digest.hexdigest()
