"""The dashboard: its built files in `static`, and the routes that serve them.

`web/dashboard` has the source; `make web` builds it into `static`.
"""
