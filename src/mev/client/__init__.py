"""The streaming client: events of a running control plane in a few lines of Python.

A product of its own: it imports only the core, the wire and a WebSocket library. :class:`Stream` is the connection; it comes back by
itself, goes on where it was, and says what was lost.
"""

from mev.client.batch import Batch as Batch
from mev.client.batch import Gap as Gap
from mev.client.batch import Record as Record
from mev.client.cursor import Cursor as Cursor
from mev.client.cursor import Slot as Slot
from mev.client.stream import Stream as Stream
from mev.client.subscription import Subscription as Subscription
