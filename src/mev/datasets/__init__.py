"""Datasets: what there is, and exports of it.

An export is a job that runs in a thread of the process that holds the database, not in a process of its own: one process at a time can
open the folder of the embedded engine, and handing blocks to a child would copy every byte once more to save nothing, since the work
(read, collapse repeats, sort, encode, compress) is the engine's own, outside the interpreter lock and under a memory limit for each query.
A server encodes too; there the thread only copies its answer into a file.

Files are made part by part. A part is a range of the table's order that holds a set number of rows, so memory is bounded by one
part whatever the export is, and what a crash costs is the part it fell into.
"""
