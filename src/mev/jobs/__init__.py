"""Background jobs: declared kinds, a folder per job, progress, cancellation and restart.

A job is a folder, ``<data>/jobs/<id>/``: the request (``spec.json``), its state (``state.json``,
written by the runner only), its progress (``progress.json``, written by the work only), its
``log``, and its ``output/``, which is valid only after success. Work runs in a separate process, so
that a crash or lack of memory costs one job. Only work that needs an object of this process, such
as the embedded database, runs in a thread.
"""
