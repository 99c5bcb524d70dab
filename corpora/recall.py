#!/usr/bin/env python3
"""Writes a text in which one character depends on the one exactly K before it.

Every line is a key, noise, ``=``, the key again::

    Bcadda=B

The second key comes K characters after the first. Keys and noise are drawn at random, so a
model that does not remember the key pays ln 8 = 2.08 nats for its repetition, whatever else it
has learned, and a model that remembers it pays nothing. The same seed gives the same text.

    python corpora/recall.py --distance 16 > corpora/recall-16.txt
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Iterator

KEYS = "ABCDEFGH"
NOISE = "abcd"
CUE = "="


def lines(distance: int, seed: int) -> Iterator[str]:
    """Yield lines endlessly.

    Args:
        distance: K, characters from the key to its repetition; at least 2.
        seed: of the random generator.
    """
    chance = random.Random(seed)
    while True:
        key = chance.choice(KEYS)
        yield key + "".join(chance.choices(NOISE, k=distance - 2)) + CUE + key + "\n"


def recall_text(distance: int, characters: int, seed: int = 1) -> str:
    """Return as many whole lines as fit into a number of characters.

    Raises:
        ValueError: the distance is below 2, or not even one line fits.
    """
    if distance < 2:
        raise ValueError(f"the distance must be at least 2, not {distance}: the {CUE} lies between")
    length = distance + 2
    if characters < length:
        raise ValueError(f"a line has {length} characters, and {characters} are asked for")
    source = lines(distance, seed)
    return "".join(next(source) for _ in range(characters // length))


def main() -> None:
    """Print the text that the command line asks for."""
    parser = argparse.ArgumentParser(description="Write a text that asks for a memory.")
    parser.add_argument(
        "--distance", type=int, default=16, metavar="K", help="how far back the key is (default 16)"
    )
    parser.add_argument(
        "--characters", type=int, default=300_000, metavar="N", help="at most (default 300,000)"
    )
    parser.add_argument("--seed", type=int, default=1, help="another one, another text (default 1)")
    chosen = parser.parse_args()
    try:
        text = recall_text(chosen.distance, chosen.characters, chosen.seed)
    except ValueError as error:
        parser.error(str(error))
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Or flushing what is not yet written would fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # else the reader simply stopped early
            parser.exit(1, f"recall.py: cannot write the text: {error.strerror}\n")


if __name__ == "__main__":
    main()
