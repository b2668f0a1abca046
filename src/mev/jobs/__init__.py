"""Long work outside of requests: declared kinds, one folder for each job, progress, cancelling, and a start again after a crash.

A job is a folder, ``<data>/jobs/<id>/``: what was asked for (``spec.json``), what became of it (``state.json``, by the runner alone),
how far it is (``progress.json``, by the work alone), its ``log``, and its ``output/``, which counts only once the job has succeeded.
Work runs in a process of its own, so that a crash or a full memory there costs one job; only what needs something that one process
can hold, such as the embedded database, runs in a thread.
"""
