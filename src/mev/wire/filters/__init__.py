"""Filters: conditions on events, parsed once and applied to whole blocks of events.

:func:`parse` parses text and checks it against the descriptors. A :class:`Filter` holds plain
:class:`Condition` values, so that it can also be translated into a query; :func:`resolve` finds
the field of a condition. ``docs/filters.md`` has the grammar.
"""

from mev.wire.filters.columns import Columns as Columns
from mev.wire.filters.errors import BadFilterError as BadFilterError
from mev.wire.filters.fields import Path as Path
from mev.wire.filters.fields import resolve as resolve
from mev.wire.filters.filter import Filter as Filter
from mev.wire.filters.parsing import MAX_CONDITIONS as MAX_CONDITIONS
from mev.wire.filters.parsing import MAX_KEYS as MAX_KEYS
from mev.wire.filters.parsing import parse as parse
from mev.wire.filters.scalars import Condition as Condition
from mev.wire.filters.scalars import Op as Op
