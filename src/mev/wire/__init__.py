"""Wire format of events: the Protobuf messages, and everything derived from their descriptors.

No I/O.
"""
