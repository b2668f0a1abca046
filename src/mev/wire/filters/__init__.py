"""Conditions on events: parsed and checked against the descriptors once, then applied to whole blocks.

:func:`parse` is the way in for text. A :class:`Filter` keeps plain values (:class:`Condition`), so that it can be applied to messages here
and be turned into a query elsewhere; :func:`resolve` says what a condition's field is. ``docs/filters.md`` has the grammar.
"""

from mev.wire.filters.columns import Columns as Columns
from mev.wire.filters.conditions import Condition as Condition
from mev.wire.filters.conditions import Op as Op
from mev.wire.filters.errors import BadFilterError as BadFilterError
from mev.wire.filters.fields import Path as Path
from mev.wire.filters.fields import resolve as resolve
from mev.wire.filters.filter import Filter as Filter
from mev.wire.filters.parsing import MAX_CONDITIONS as MAX_CONDITIONS
from mev.wire.filters.parsing import MAX_KEYS as MAX_KEYS
from mev.wire.filters.parsing import parse as parse
