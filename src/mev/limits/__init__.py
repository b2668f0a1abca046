"""What keeps one client from taking what all need: rates, sizes, times, connections, and refusing early when there is too much.

Nothing here knows who anyone is; callers pass names.
"""
