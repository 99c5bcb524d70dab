"""Convert nats to bits and to perplexity."""

from __future__ import annotations

import math


def in_bits(nats: float) -> float:
    """Return a number of nats in bits."""
    return nats / math.log(2)


def perplexity(nats_per_char: float) -> float:
    """Return the exponential of the nats per character; infinite on overflow."""
    try:
        return math.exp(nats_per_char)
    except OverflowError:
        return math.inf
