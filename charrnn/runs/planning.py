"""Turning a budget into a number of updates: minutes only once the speed is known.

A plan is kept if possible: a run that is stopped and resumed equals one that never stopped
only as long as both follow the same plan.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import replace

from charrnn.recipe import guessed_speed, matrix_weights, pressure, regularisers, warmup_steps
from charrnn.runs.events import Planned
from charrnn.runs.run import Progress, Run
from charrnn.runs.schedule import Schedule, validation_interval, validation_length

#: A budget in minutes is planned again if the run would miss it by more than this share of it ...
OFF_PLAN = 0.05
#: ... at the speed of a stretch of at least this share of it.
OFF_PLAN_AFTER = 0.1
#: Updates at the start of a resumed sitting that say nothing of its speed: C is compiled, caches
#: and memory pools are cold, and a GPU's graph is not captured yet.
COLD = 10
#: Share of the time that saving and logging leave for updates.
OF_UPDATES = 0.98
#: Fewest characters that a validation scores when the minutes are few.
LEAST_TIMED = 10_000
#: Characters validated in the time that trains one: assumed until the first validation is timed.
PACE = 2


class Planner:
    """Plans one sitting of a run: the plan is kept in its progress, and model and config follow it.

    Args:
        run: as the sitting begins; whoever trains it keeps its progress up to date.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        # Time is counted from these moments, of which the progress is kept, and from the plan's.
        #: When this sitting began.
        self._began = replace(run.progress)
        #: When it began to measure its speed for a plan.
        self._speed_from: Progress | None = None
        #: When it was no longer cold. A new run is planned long after its first updates.
        self._warm_from: Progress | None = None if run.progress.step else Progress()

    def rate_factor(self) -> float:
        """Return the share of the peak learning rate for the next update.

        A run that is resumed without a plan, such as one given more minutes, goes by the clock.
        A new run holds its rate until it is planned, even if it stalls.
        """
        progress = self.run.progress
        total = progress.planned_steps
        if total is None and self._began.step:
            total = self._steps_by_clock()
        return Schedule(self.run.config.warmup_steps, total).factor(progress.step)

    def watch_speed(self) -> bool:
        """Measure the speed; return whether the part of the minutes that holds the rate is over.

        Call it at every step until it returns True. The speed is that of the second half of this
        part: the first updates warm up caches and memory pools, and are not yet captured on a GPU.
        In a resumed run the part is a share of the time left. If the minutes are used up by its
        middle, as after a stall, a single update is measured.
        """
        progress, began = self.run.progress, self._began.seconds
        half = Schedule.HOLD * (self._budget() - began) / 2
        if progress.step == 0:
            return False
        if self._speed_from is None:
            if progress.seconds >= began + half:
                self._speed_from = replace(progress)
            return False
        until = min(self._speed_from.seconds + half, self._budget())
        return progress.step > self._speed_from.step and progress.seconds >= until

    def size_validations(self) -> None:
        """Set how many characters each validation scores, unless an earlier validation fixed it.

        Losses on different characters cannot be compared. As long as minutes are not planned, the
        number follows from the speed so far, or a guess until this sitting has measured it.
        """
        run, progress = self.run, self.run.progress
        has_been = progress.validated_step is not None or run.better is not None
        if run.valid is None or (has_been and progress.validate_characters is not None):
            return
        total, most = progress.planned_steps, run.valid.characters
        if total is None:
            speed = self._guessed_speed() if self._speed_from is None else self._measured_speed()
            total = self._affordable_steps(speed)
            most = max(LEAST_TIMED, int(total * run.lanes.characters_per_step / 10))
        length = validation_length(total, run.lanes.characters_per_step, run.valid.characters)
        progress.validate_characters = min(most, length)

    def seconds_left(self) -> float:
        """Return the time of the updates and validations still to come.

        For a budget in minutes it is what is left of them, until the speed since the plan is known.
        """
        progress, minutes = self.run.progress, self.run.config.minutes
        if self.run.is_finished:
            return 0.0
        if progress.planned_steps is None:
            return max(0.0, self._budget() - progress.seconds)
        total = progress.step if self.run.is_over else progress.planned_steps
        updates = total - progress.step
        speed, since = self._speed_since_plan()
        if minutes is not None and since < OFF_PLAN_AFTER * self._budget():
            return max(0.0, self._budget() - progress.seconds)
        an_update = 1 / speed if updates else 0.0
        a_validation = progress.seconds_a_validation
        if not progress.validations and progress.validate_characters is not None:
            as_updates = progress.validate_characters / self.run.lanes.characters_per_step / PACE
            a_validation = as_updates * an_update
        ahead = self._validations_ahead(total, progress.validate_every)
        return updates * an_update + ahead * a_validation

    def plan(self) -> Planned:
        """Plan the minutes at the measured speed."""
        speed = OF_UPDATES * self._measured_speed()
        return self.adopt(self._affordable_steps(speed), speed)

    def is_off(self) -> bool:
        """Whether the speed has changed so much that the run would miss its minutes."""
        progress = self.run.progress
        planned = progress.planned_steps
        if self._warm_from is None and progress.step >= self._began.step + COLD:
            self._warm_from = replace(progress)
        if self.run.config.minutes is None or planned is None or self.run.is_out_of_patience:
            return False
        if progress.step == progress.planned_at_step:
            return False
        speed, since = self._speed_since_plan()
        # A plan made after a stall may end before the stretch is long enough, and so may the
        # minutes.
        is_late = progress.seconds > (1 + OFF_PLAN) * self._budget()
        if since < OFF_PLAN_AFTER * self._budget() and progress.step < planned and not is_late:
            return False
        end = progress.seconds + (planned - progress.step) / speed
        ahead = self._validations_ahead(planned, progress.validate_every)
        end += ahead * progress.seconds_a_validation
        off = abs(end - self._budget()) > OFF_PLAN * self._budget()
        return off and self._affordable_steps(speed) != planned

    def plan_again(self) -> Planned:
        """Plan the rest of the minutes at the speed since the last plan."""
        speed, _ = self._speed_since_plan()
        return self.adopt(self._affordable_steps(speed), speed)

    def adopt(self, total: int, speed: float | None = None) -> Planned:
        """Make ``total`` updates the run's plan, at ``speed`` updates per second if known.

        A budget's first plan also sets dropout, weight decay and loss temperature for its number
        of passes, where the rules choose them. Later plans leave them alone: dropout slows updates
        down, so it might come and go from plan to plan. A warm-up still in progress is shortened if
        it is longer than ``total`` updates need.
        """
        progress = self.run.progress
        before = None if progress.planned_at_step is None else progress.planned_steps
        progress.planned_steps = total
        progress.planned_at_step = progress.step
        progress.planned_at_seconds = progress.training_seconds
        progress.validate_every = self._validate_every(total, speed)
        self.size_validations()
        self._shorten_warmup(total)
        if before is None:
            self._regularise(total)
        model, config = self.run.model.config, self.run.config
        return Planned(
            total,
            progress.validate_every,
            progress.validate_characters,
            before=before,
            dropout=model.dropout,
            weight_drop=model.weight_drop,
            weight_decay=config.weight_decay,
            loss_temperature=config.loss_temperature,
        )

    def _shorten_warmup(self, total: int) -> None:
        """Shorten a warm-up still in progress to that of ``total`` updates, or end it here."""
        run = self.run
        warm = max(run.progress.step, warmup_steps(total))
        # It was for the expected updates, or for a larger budget: the run might end before it has
        # warmed up.
        if warm < run.config.warmup_steps:
            run.reconfigure(replace(run.config, warmup_steps=warm))

    def _regularise(self, total: int) -> None:
        """Set dropout, decay and temperature for ``total`` updates, where the rules choose them."""
        run, model, config = self.run, self.run.model, self.run.config
        if not (config.dropout_by_plan or config.decay_by_plan or config.temperature_by_plan):
            return
        # Passes are counted as in recipe.choose, so that the same budget gets the same numbers.
        characters = run.train.characters
        passes = config.epochs or total * run.lanes.characters_per_step / characters
        pressed = pressure(passes, matrix_weights(model.config), characters)
        held = regularisers(model.config.cell, model.config.vocabulary, pressed, characters)
        if config.dropout_by_plan:
            model.set_dropout(held.dropout, held.weight_drop)
        if config.decay_by_plan:
            config = replace(config, weight_decay=held.weight_decay)
        if config.temperature_by_plan:
            config = replace(config, loss_temperature=held.loss_temperature)
        run.reconfigure(config)

    def _budget(self) -> float:
        """Return the budget in seconds."""
        minutes = self.run.config.minutes
        assert minutes is not None, "a budget in epochs or steps is planned at the start"
        return minutes * 60

    def _steps_by_clock(self) -> int | None:
        """Return the run's total updates, if the rest take as long as those so far.

        None: the part that holds the rate is not over.
        """
        progress, budget = self.run.progress, self._budget()
        if progress.seconds <= Schedule.HOLD * budget:
            return None
        return max(progress.step + 1, round(progress.step * budget / progress.seconds))

    def _speed_since(self, step: int, seconds: float) -> float:
        """Return the updates per second since a step, after so many seconds of training.

        Validations are left out: with none or several in a stretch, no stretch would be typical.
        """
        progress = self.run.progress
        return (progress.step - step) / max(1e-9, progress.training_seconds - seconds)

    def _measured_speed(self) -> float:
        """Return the updates per second since ``watch_speed`` began to measure."""
        assert self._speed_from is not None
        return self._speed_since(self._speed_from.step, self._speed_from.training_seconds)

    def _guessed_speed(self) -> float:
        """Return the updates per second that are expected before any are measured."""
        shape, device = self.run.model.config, self.run.device.type
        precision, weights = self.run.config.precision, matrix_weights(shape)
        speed = guessed_speed(shape.vocabulary, device, precision, weights)
        return speed / self.run.lanes.characters_per_step

    def _speed_since_plan(self) -> tuple[float, float]:
        """Return the updates per second since the last plan, and the seconds since then.

        After a resume all before the sitting is warm is left out: a stop must not look like a
        change of speed. Until then the seconds are 0.
        """
        progress, warm = self.run.progress, self._warm_from
        step, seconds = progress.planned_at_step, progress.planned_at_seconds
        assert step is not None, "nothing is planned yet"
        if warm is None or progress.step <= warm.step:
            return self._speed_since(step, seconds), 0.0
        if warm.step > step:
            step, seconds = warm.step, warm.training_seconds
        return self._speed_since(step, seconds), progress.training_seconds - seconds

    def _affordable_steps(self, speed: float) -> int:
        """Return the run's total updates if it is to end with its minutes, validations included."""
        progress = self.run.progress
        left, cost = max(0.0, self._budget() - progress.seconds), progress.seconds_a_validation

        def seconds(total: int) -> float:
            ahead = self._validations_ahead(total, self._validate_every(total, speed))
            return (total - progress.step) / speed + ahead * cost

        totals = range(progress.step + 1, progress.step + int(min(left * speed, 2.0**62)) + 1)
        affordable = bisect_right(totals, left, key=seconds)
        # With time left, make at least one more: it shows if a stall was taken for slowness.
        least = left > 0 and progress.planned_steps != progress.step
        return progress.step + max(least, affordable)

    def _validations_ahead(self, total: int, every: int | None) -> int:
        """Return how many validations remain, up to the one at the run's last update."""
        progress = self.run.progress
        is_due = progress.validated_step != progress.step
        if every is None:
            return 0
        if progress.step >= total:
            return int(is_due)
        # One that is due at this very step is still to come.
        made = (progress.step - 1 if is_due else progress.step) // every
        return math.ceil(total / every) - made

    def _validate_every(self, total: int, speed: float | None) -> int | None:
        """Return the steps between validations; None: nothing is held out."""
        run = self.run
        if run.valid is None:
            return None
        return run.config.validate_every or validation_interval(
            total,
            run.lanes.characters_per_step,
            run.valid.characters,
            run.progress.seconds_a_validation * (speed or 0.0),
        )
