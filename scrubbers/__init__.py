"""Scrubbing: pure treatments of values, by rules that are data."""

from scrubbers.address import AddressProfile, truncate_ip
from scrubbers.detectors import Detectors
from scrubbers.known_values import KnownValues
from scrubbers.model import AddressError, Remark, RuleError
from scrubbers.text import Numbering, redact_text
from scrubbers.time import coarsen_time
from scrubbers.url import reduce_url
from scrubbers.user_agent import reduce_user_agent

__all__ = [
    "AddressError",
    "AddressProfile",
    "Detectors",
    "KnownValues",
    "Numbering",
    "Remark",
    "RuleError",
    "coarsen_time",
    "redact_text",
    "reduce_url",
    "reduce_user_agent",
    "truncate_ip",
]
