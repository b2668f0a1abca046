"""What an event looks like: the Protobuf messages, and everything derived from their descriptors. No I/O."""
