"""How several models rank on one text: as they are, and by what their runs were given."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from charrnn.chance import Difference, differences_of_means, paired_margin
from charrnn.inference.assessment import Assessment

#: Blocks of a text from which a margin is given.
FEWEST_BLOCKS = 6


def differences(assessments: Sequence[Assessment]) -> list[Difference]:
    """Return how far the best model is ahead of each other on the same text, the nearest first.

    Margins come from t tests of pairs, one for each block of the text: what is hard for one model
    is mostly hard for the other, so their difference varies far less than their losses. As the
    best of k models is found by looking at them, the intervals hold for all k (k - 1) / 2 pairs
    together. They say what another text of this kind could change, for these models as they are;
    not another seed.

    Args:
        assessments: of models on one text; those of ``comparable`` count, and none if the text
            has fewer than ``FEWEST_BLOCKS`` blocks.
    """
    ranked = sorted(comparable(assessments), key=lambda one: (one.ranked.nats, one.checkpoint))
    found = []
    for other in ranked[1:]:
        best, nats_N = ranked[0], other.ranked.nats_N
        if len(nats_N) < FEWEST_BLOCKS:
            continue
        pairs = zip(nats_N, best.ranked.nats_N, strict=True)
        share = len(nats_N) / other.ranked.characters
        by_block = [(more - less) * share for more, less in pairs]
        nats = statistics.fmean(by_block)
        margin = paired_margin(by_block, math.comb(len(ranked), 2))
        found.append(Difference(best.checkpoint, other.checkpoint, nats, margin, nats > margin))
    return found


@dataclass(frozen=True)
class Setting:
    """Models of finished runs that were given the same but for the seed: two or more."""

    models: tuple[Assessment, ...]

    @property
    def name(self) -> str:
        """Its first model's."""
        return self.models[0].checkpoint

    @property
    def losses(self) -> tuple[float, ...]:
        """Nats per character of each model."""
        return tuple(one.ranked.nats_per_char for one in self.models)

    @property
    def nats_per_char(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.losses)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds."""
        return statistics.stdev(self.losses)

    @property
    def is_varied(self) -> bool:
        """Whether the seeds changed anything but the last bits of a loss.

        Where given weights are trained on without dropout they do not.
        """
        return self.spread > 1e-6


def settings(assessments: Sequence[Assessment]) -> list[Setting]:
    """Return what was trained from several seeds, the best mean first.

    Args:
        assessments: of models on one text; those of ``comparable`` count, but of several with the
            same seed only the first: they are copies, or repeat each other.
    """
    found: dict[str, dict[int, Assessment]] = {}
    for one in comparable(assessments):
        if one.run is not None and not one.run.is_unfinished:
            found.setdefault(one.run.setting, {}).setdefault(one.run.seed, one)
    several = [Setting((*by_seed.values(),)) for by_seed in found.values() if len(by_seed) > 1]
    return sorted(several, key=lambda setting: setting.nats_per_char)


def setting_differences(ranked: Sequence[Setting]) -> list[Difference]:
    """Return how far apart the means of each two settings are, by their names.

    Args:
        ranked: from ``settings``; those in which the seeds changed nothing do not count.
    """
    return differences_of_means({one.name: one.losses for one in ranked if one.is_varied})


def comparable(assessments: Sequence[Assessment]) -> list[Assessment]:
    """Return the models whose scores can be compared, each once.

    Left out are those that do not count the same characters as most (but bytes), and those whose
    loss is not finite.
    """
    named = {one.checkpoint: one for one in assessments}.values()
    counted = Counter((one.scores.characters, one.scores.bytes) for one in named)
    (most, _), *_ = counted.most_common()
    return [
        one
        for one in named
        if (one.scores.characters, one.scores.bytes) == most and math.isfinite(one.ranked.nats)
    ]


def to_list(assessments: Sequence[Assessment]) -> list[dict[str, Any]]:
    """Return a JSON list, with one object per assessment.

    The differences between models are at the best one's; what was trained from several seeds is
    at the first model of each setting, with how far it is ahead of others.
    """
    rows = [one.to_dict() | {"differences": [], "over_seeds": None} for one in assessments]
    of = {row["checkpoint"]: row for row in reversed(rows)}
    for pair in differences(assessments):
        of[pair.better]["differences"].append(asdict(pair))
    ranked = settings(assessments)
    for setting in ranked:
        of[setting.name]["over_seeds"] = {
            "checkpoints": [one.checkpoint for one in setting.models],
            "nats_per_char": setting.nats_per_char,
            "spread": setting.spread,
            "differences": [],
        }
    for pair in setting_differences(ranked):
        of[pair.better]["over_seeds"]["differences"].append(asdict(pair))
    return rows
