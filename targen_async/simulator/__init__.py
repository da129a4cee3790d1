"""A stand-in for a language model that knows the answers: for demos, tests and measurements.

`answer` is a pure function; `targen_async.simulator.server` puts it behind an OpenAI-compatible
endpoint.
"""

from targen_async.simulator.answers import SimulatedAnswer, answer, gold
from targen_async.simulator.settings import SimulatorSettings

__all__ = ["SimulatedAnswer", "SimulatorSettings", "answer", "gold"]
