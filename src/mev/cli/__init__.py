"""The `mev` command."""
