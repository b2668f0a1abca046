"""The bot side: obeys signed commands, answers them, steps down by itself when it loses its control plane.

A product of its own: it imports only the core, the wire, the crypto, the bus and the predictor. A bot embeds it by subclassing
:class:`Strategy` and running an :class:`Agent`; nothing else here is needed for that.
"""

from mev.agent.agent import Agent as Agent
from mev.agent.enrolment import Site as Site
from mev.agent.fetch import fetch_from as fetch_from
from mev.agent.level import Level as Level
from mev.agent.model import Loaded as Loaded
from mev.agent.model import ModelFolder as ModelFolder
from mev.agent.strategy import Decision as Decision
from mev.agent.strategy import Desk as Desk
from mev.agent.strategy import Strategy as Strategy
