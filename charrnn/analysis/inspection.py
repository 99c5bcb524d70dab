"""What a model's recurrence does on a text: all measurements in one record.

They are made on a stretch of text, and on the log of the model's training:

- the step: the equations in plain numbers, compared with the model (``equations``);
- gradient flow: the size of the gradient of one character's loss, by how far back it reaches
  (``flow``);
- memory: what a reset of the state costs, by the number of characters since (``memory``);
- pace, gates and units: what states and gates do along the text (``activity``);
- clipping: the gradient norms in the training's log (``norms``), and how far clipping turns a
  gradient (``gradients``);
- truncation: what windows make of the full gradient (``gradients``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from charrnn.analysis.activity import (
    SHOWN,
    Activation,
    GateUse,
    Pace,
    Unit,
    UnitFound,
    activation,
    gate_use,
    pace,
    units,
)
from charrnn.analysis.equations import Step, write_out
from charrnn.analysis.flow import GradientFlow, gradient_flow, initial_model
from charrnn.analysis.gradients import Cut, Truncation, cuts, truncation
from charrnn.analysis.memory import Memory, memory
from charrnn.analysis.norms import Clipping
from charrnn.analysis.stretch import Stretch
from charrnn.config import CellName, InspectConfig, TrainConfig, WeightsOrigin
from charrnn.inference.sampling import unwarned
from charrnn.network.model import CharModel
from charrnn.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class Inspection:
    """The measurements of a model on a stretch of text.

    Those not asked for are empty; ``clipping`` is there whenever a log's norms were given.
    """

    cell: CellName
    characters: int
    """Length of the stretch."""
    step: Step | None
    """The equations at the end of the stretch."""
    gradient_flow: tuple[GradientFlow, ...]
    """For trained and initial weights; then for both, scaled to each radius asked for."""
    memory: Memory | None
    pace: tuple[Pace, ...]
    gates: tuple[GateUse, ...]
    units: tuple[UnitFound, ...]
    activation: Activation | None
    """Of the unit asked for, if any."""
    clipping: Clipping | None
    """None where there is no log."""
    cuts: tuple[Cut, ...]
    """For trained and initial weights."""
    truncation: tuple[Truncation, ...]
    """For trained and initial weights."""

    def to_dict(self, checkpoint: str, model: CharModel) -> dict[str, Any]:
        """Return a JSON object; what was not measured is null or empty.

        Args:
            checkpoint: the model's name.
            model: the model that was inspected.
        """
        return {
            "checkpoint": checkpoint,
            "cell": self.cell,
            "layers": model.config.layers,
            "hidden": model.config.hidden,
            "parameters": model.parameter_count(),
            **asdict(self),
        }


@unwarned()
def inspect(
    model: CharModel,
    stretch: Stretch,
    vocabulary: Vocabulary,
    config: InspectConfig,
    training: TrainConfig,
    *,
    unit: Unit | None = None,
    history: Clipping | None = None,
    tell: Callable[[str], object] = lambda what: None,
) -> Inspection:
    """Measure what the user chose.

    Args:
        model: trained, in evaluation mode.
        stretch: the text; the figures mean what they seem to only if it was held out.
        vocabulary: the model's.
        config: what the user chose.
        training: how the model was trained; its seed makes the initial weights, unless the
            user chose one.
        unit: the unit whose activation is asked for.
        history: the gradient norms of the training.
        tell: called with each measurement's name before it is made.

    Raises:
        UsageError: the stretch is too short for one of the windows in ``config`` (nothing was
            measured), or a recurrent matrix cannot be scaled to one of its radii.
    """
    wanted = config.measured
    both: list[tuple[WeightsOrigin, CharModel]] = [("trained", model)]
    if not wanted.isdisjoint(("flow", "clipping", "truncation")):
        seed = training.seed if config.seed is None else config.seed
        initial = initial_model(model.config, seed)
        both.append(("initial", initial.to(model.head.weight)))

    def wants(name: str) -> bool:
        if name in wanted:
            tell(name)
        return name in wanted

    # First, as it may refuse.
    truncations = (
        tuple(
            truncation(weighted, stretch.ids, config.bptt, loss_last=config.loss_last, weights=name)
            for name, weighted in both
        )
        if wants("truncation")
        else ()
    )
    step = write_out(model, stretch.text, stretch.ids, vocabulary) if wants("step") else None
    flows = (
        tuple(
            gradient_flow(weighted, stretch, weights=name, scaled_to=radius)
            for radius in (None, *config.spectral_radius)
            for name, weighted in both
        )
        if wants("flow")
        else ()
    )
    remembered = (
        memory(model, stretch, vocabulary, bptt=training.bptt, reset_state=training.reset_state)
        if wants("memory")
        else None
    )
    return Inspection(
        cell=model.config.cell,
        characters=len(stretch),
        step=step,
        gradient_flow=flows,
        memory=remembered,
        pace=pace(model, stretch) if wants("pace") else (),
        gates=gate_use(model, stretch) if wants("gates") else (),
        units=units(model, stretch) if wants("units") else (),
        # The half that chose no unit (``units``), but for its first 128 characters.
        activation=(
            activation(model, stretch, unit, max(SHOWN, len(stretch) // 2)) if unit else None
        ),
        clipping=history,
        cuts=(
            tuple(
                cut
                for name, weighted in both
                for cut in cuts(weighted, stretch.ids, training.bptt, weights=name)
            )
            if wants("clipping")
            else ()
        ),
        truncation=truncations,
    )
