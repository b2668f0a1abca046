"""Agent library: execute signed commands, report results, step down without a control plane.

It imports only the core, the wire format, the crypto, the bus and the predictor. A bot subclasses
:class:`Strategy` and runs an :class:`Agent`.
"""

from mev.agent.agent import Agent as Agent
from mev.agent.enrolment import Site as Site
from mev.agent.enrolment import fetch_from as fetch_from
from mev.agent.level import Level as Level
from mev.agent.model_source import Loaded as Loaded
from mev.agent.model_source import ModelFolder as ModelFolder
from mev.agent.strategy import Decision as Decision
from mev.agent.strategy import Strategy as Strategy
from mev.agent.strategy import StrategyContext as StrategyContext
from mev.bus.kafka import Brokers as Brokers
