"""Datasets and their exports.

An export is a job in a thread of the process that owns the database. A separate process could not
open the embedded engine's folder, and would copy every byte once more for no gain: reading,
deduplication, sorting, encoding and compression run in the engine, outside the interpreter lock and
within a memory limit per query. A ClickHouse server encodes as well; the thread only copies its
response into a file.

Files are written part by part. A part is a range of the table's order with a fixed number of rows:
memory is bounded by one part for exports of any size, and a crash loses at most one part.
"""
