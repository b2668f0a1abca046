"""Backup and restore of the data folder of a system that is stopped."""
