"""Checks of the machine, the process and the services, for `mev doctor`.

A check is a function that reads files below a root folder (`/`, in tests a folder with `proc` and
`sys`) and returns findings. It changes nothing, needs no root, and reads the effective value, not
a configuration file. `finding` has the result of a check, `run` the list of all checks.
"""
