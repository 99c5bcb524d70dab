"""What happens in a training, as records: the training loop yields them, the display reads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charrnn.inference.evaluation import Scores


@dataclass(frozen=True)
class Planned:
    """A budget became a number of updates."""

    total_steps: int
    validate_every: int | None
    """Steps between validations; None: nothing is held out."""
    validate_characters: int | None
    """Held-out characters that each validation scores; None: nothing is held out."""
    before: int | None = None
    """Updates of the plan that it replaces, because the speed has changed; None: it is the first.
    """
    dropout: float = 0.0
    """In use from here on, like the next three: set by this plan if it is the first."""
    weight_drop: float = 0.0
    weight_decay: float = 0.0
    loss_temperature: float = 1.0


@dataclass(frozen=True)
class Logged:
    """Some updates were done; ``row`` is what was written to metrics.jsonl."""

    row: dict[str, Any]
    planned_steps: int | None
    """Updates of the whole run; None: not planned yet."""
    eta: float
    """Seconds to go by the plan."""


@dataclass(frozen=True)
class Validating:
    """The held-out part is about to be scored; ``Validated`` follows, unless the run stops."""


@dataclass(frozen=True)
class Validated:
    """The held-out part was scored."""

    row: dict[str, Any]
    scores: Scores
    best: bool
    """Whether this is the lowest loss so far, so that the best checkpoint has these weights."""


@dataclass(frozen=True)
class Sampled:
    """A sample was drawn from the model as it is now."""

    text: str


@dataclass(frozen=True)
class Saved:
    """The complete state was written to disk."""

    path: Path
    step: int


@dataclass(frozen=True)
class Spiked:
    """The loss jumped, or is worse than guessing; reported once a run."""

    step: int
    before: float | None
    """Running mean of the loss before, nats per character; None: still warming up."""
    after: float
    """Loss of the row of the log that shows the spike, nats per character."""


@dataclass(frozen=True)
class Paused:
    """The process was stopped and continued, as by Ctrl-Z and fg; the clock leaves that out."""

    seconds: float


@dataclass(frozen=True)
class Uncaptured:
    """The update could not be captured in a CUDA graph, and runs eagerly; reported once."""

    reason: str


@dataclass(frozen=True)
class Finished:
    """The loop is over; nothing follows."""

    reason: str
    """"done", "patience", or what ``should_stop`` said."""
    complete: bool
    """Whether the budget was used up or patience ran out."""


Event = (
    Planned
    | Logged
    | Validating
    | Validated
    | Sampled
    | Saved
    | Spiked
    | Paused
    | Uncaptured
    | Finished
)
