"""A price in nats becomes bits, and a perplexity."""

from __future__ import annotations

import math


def in_bits(nats: float) -> float:
    """Return a price in bits."""
    return nats / math.log(2)


def perplexity(nats_per_char: float) -> float:
    """Return the exponential; infinite beyond the largest float."""
    try:
        return math.exp(nats_per_char)
    except OverflowError:
        return math.inf
