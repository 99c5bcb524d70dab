"""When a run does what, by its length: the rate of every update, and the validations."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: A validation scores at least this many characters, or all that are held out; in a few minutes,
#: fewer (``planning.LEAST_TIMED``).
LEAST_SCORED = 200_000


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a pure function of the step: warm-up, hold, decay.

    A budget in minutes becomes a number of steps only once the speed is known. So its first
    ``HOLD`` keeps the peak rate, and the plan is made at the end of that. A run that is resumed
    without a plan goes by the clock instead (``planning.Planner.rate_factor``).
    """

    warmup_steps: int
    """Steps of the linear rise."""
    total_steps: int | None
    """Steps of the whole run; None: not planned yet."""

    #: Share of the run before the decay begins.
    HOLD = 0.2
    #: Rate at the end, as a share of the peak.
    FLOOR = 0.02

    def factor(self, step: int) -> float:
        """Return the share of the peak rate for update number ``step``, from 0."""
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.total_steps is None:
            return rise
        hold = self.HOLD * self.total_steps
        done = min(1.0, max(0.0, (step - hold) / max(1.0, self.total_steps - hold)))
        return rise * (self.FLOOR + (1 - self.FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))


def validation_interval(
    total_steps: int, characters_per_step: int, held_out: int, cost: float = 0.0
) -> int:
    """Return the steps between validations.

    Validation, in float32, reads one to three times as fast as training on a CPU, so 3 to 20
    validations that share a tenth of the trained characters take 3 to 10 % of the time. If a
    validation turns out to cost more, there are fewer, down to the one at the end.

    Args:
        total_steps: of the run.
        characters_per_step: B x T, or B times the characters of a window that count.
        held_out: characters of the validation part.
        cost: of a validation, in updates that take the same time; 0: not known.
    """
    number = _validations(total_steps * characters_per_step, held_out)
    if cost:
        number = min(number, max(1, int(total_steps / 10 / cost)))
    return max(1, math.ceil(total_steps / number))


def validation_length(total_steps: int, characters_per_step: int, held_out: int) -> int:
    """Return how many characters each validation scores.

    If the held-out part is too large for three validations, every one scores the same beginning of
    it. Arguments are as for ``validation_interval``.
    """
    trained = total_steps * characters_per_step
    share = int(trained / 10 / _validations(trained, held_out))
    return min(held_out, max(LEAST_SCORED, share))


def _validations(trained: int, held_out: int) -> int:
    """Return how many validations share a tenth of the trained characters."""
    return min(20, max(3, int(trained / 10 / max(1, held_out))))
