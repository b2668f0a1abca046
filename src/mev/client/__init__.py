"""Python client of the event stream.

:class:`Stream` is the connection: it reconnects, resumes at its cursor and reports lost events. The
    package imports only the core, the wire format and a WebSocket library.
"""

from mev.client.batch import Batch as Batch
from mev.client.batch import Gap as Gap
from mev.client.batch import Record as Record
from mev.client.cursor import Cursor as Cursor
from mev.client.cursor import Resume as Resume
from mev.client.cursor import Slot as Slot
from mev.client.stream import Stream as Stream
from mev.client.subscription import Subscription as Subscription
