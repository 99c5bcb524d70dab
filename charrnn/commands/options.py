"""What commands share of their options: types, help, groups, and the default of ``--run``."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from charrnn import recipe
from charrnn.command_words import command_line
from charrnn.config import DeviceName, OptimiserName, PartName, PrecisionName
from charrnn.errors import UsageError
from charrnn.layout import LOG, PLAN, RUNS
from charrnn.text.files import name_of


def typed(word: str) -> str:
    """Return an argument as it was typed: as utf-8 even if the locale is ASCII."""
    if not any("\udc80" <= character <= "\udcff" for character in word):
        return word
    return os.fsencode(word).decode("utf-8", "surrogateescape")


def run_folder(name: str) -> Path:
    """Return the folder that --run names.

    Raises:
        UsageError: the name is empty, which as a path would be the current folder.
    """
    if not name:
        raise UsageError("--run is empty: name a folder, or . for the current one")
    return Path(name)


def checkpoint(name: str) -> Path:
    """Return the checkpoint, or a run's folder, that CHECKPOINT names; errors as ``run_folder``."""
    if not name:
        raise UsageError("CHECKPOINT is empty: name one, or a run's folder, . for the current one")
    return Path(name)


Device = Annotated[
    Literal["auto", DeviceName],
    typer.Option(
        help="Where to compute: cpu, cuda (NVIDIA) or mps (Apple); auto: cuda where torch can use "
        "it, else cpu."
    ),
]
Precision = Annotated[
    Literal["auto", PrecisionName],
    typer.Option(
        help="Precision of matrix products; auto: bf16 where the hardware has it (CUDA: and cuDNN "
        "from 9.13 on).",
        callback=lambda name: None if name == "auto" else name,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.html",
        help="Also write a page with tables, figures and samples (needs matplotlib).",
    ),
]
Valid = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Validate on this text (default: the end of TEXT); may be given several times.",
    ),
]
Epochs = Annotated[float | None, typer.Option(help="Passes over the text.")]
Steps = Annotated[int | None, typer.Option(help="Steps, that is updates of the weights.")]
Layers = Annotated[int | None, typer.Option(help="Layers of cells (default 1).")]
Embedding = Annotated[
    int | None, typer.Option(help="Width of a character's vector (default: by rule).")
]
Dropout = Annotated[
    float | None,
    typer.Option(
        help="Share of units dropped after each layer (default: by rule); does not change "
        "--weight-drop."
    ),
]
WeightDrop = Annotated[
    float | None,
    typer.Option(
        help="Share of recurrent weights dropped (default: by rule, even with --dropout 0)."
    ),
]
Optimiser = Annotated[
    OptimiserName | None,
    typer.Option(
        help="muon (default: Muon for the recurrence's matrices, AdamW for the rest), adamw for "
        "all weights, or sgd, plain gradient descent without momentum."
    ),
]
WeightDecay = Annotated[
    float | None,
    typer.Option(
        help="Shrink the recurrence's matrices at each update by this times the learning rate "
        "(default: by rule; adamw 0.1, sgd 0); embedding and head too where symbols are many."
    ),
]
DropoutMasks = Annotated[
    int | None,
    typer.Option(
        help="How many masks of dropout an update's loss is averaged over (default: by rule)."
    ),
]
LossTemperature = Annotated[
    float | None,
    typer.Option(
        help="Divide the logits by this in the training loss; below 1 the trained model is "
        "less sure of itself (default: by rule)."
    ),
]
ClipNorm = Annotated[
    float | None,
    typer.Option(
        help="Scale larger gradients down to this norm; 0: no clipping (default 1). Its "
        "effect shows best with --optimiser sgd."
    ),
]
MinCount = Annotated[
    int | None,
    typer.Option(
        help="Characters that occur fewer than N times in the training part become the unknown "
        "symbol (default 2; 1 where those that occur once are over 0.1 % of it)."
    ),
]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="The text, preferably one the model was not trained on: a file, folder, glob, or - "
        "for standard input; may be given several times.",
    ),
]
Part = Annotated[
    PartName | None,
    typer.Option(
        help="Take this part of the run's text: held out to validate, held out to test, or trained "
        "on; if the text has moved, --text says where it is now."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", parser=checkpoint, help="A checkpoint, or a run's folder."
    ),
]

#: Regularisation options, which ``train`` and ``compare`` share.
AGAINST_LEARNING_BY_HEART = (
    "--dropout --weight-drop --weight-decay --loss-temperature --dropout-masks"
)


def grouped(groups: dict[str, str]) -> type[TyperCommand]:
    """Return the class of a command whose help shows its options in groups.

    typer itself groups options only in the boxes that Rich draws.

    Args:
        groups: title -> flags, in the order of the help. Options in no group join the last one.
    """

    class Grouped(TyperCommand):
        def format_options(self, ctx: Any, formatter: Any) -> None:
            arguments, options = [], {}
            for one in self.get_params(ctx):
                name, said = one.get_help_record(ctx) or ("", "")
                if one.param_type_name == "argument":
                    arguments.append((name.partition(" <")[0], said))
                else:
                    options[one.opts[-1]] = (name, said)
            rows = {"Arguments": arguments}
            for title, flags in groups.items():
                rows[title] = [options.pop(name) for name in flags.split()]
            rows[title] += options.values()
            # The same width in all groups, up to click's limit.
            names = [name for group in rows.values() for name, _ in group]
            width = min(30, max(map(len, names)))
            for title, group in rows.items():
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(width), said) for name, said in group])

    return Grouped


def fields_given(context: typer.Context, kind: type, but: Collection[str]) -> dict[str, Any]:
    """Return the options that the user gave and that are fields of a dataclass.

    An option therefore has its field's name. A flag that is not given is left out, and what may
    be given several times is a tuple.

    Args:
        context: the command's.
        kind: the dataclass.
        but: fields that are not taken directly from options.
    """
    names = [field.name for field in fields(kind) if field.name not in but]
    values = recipe.given({name: context.params.get(name) for name in names})
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if value is not False
    }


def refuse_both(valid: Sequence[str] | None, valid_share: float | None) -> None:
    """Refuse --valid together with --valid-share.

    Raises:
        UsageError: both are given.
    """
    if valid and valid_share is not None:
        raise UsageError("--valid and --valid-share cannot be used together: give one")


def default_run(texts: Sequence[str], what: str) -> Path:
    """Return a folder under checkpoints/ that no run has taken yet.

    Args:
        texts: as the user named them.
        what: the end of its name: a run's cell, or "compare" for a comparison.
    """
    base = _first_run(texts, what)
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def _first_run(texts: Sequence[str], what: str) -> Path:
    """Return the folder under checkpoints/ of the first run on a text."""
    return RUNS / f"{name_of(texts) if texts else 'python'}-{what}"


def such_as(texts: Sequence[str], what: str) -> str:
    """Return a hint at the folder that is meant, if it exists: the only text, or the default.

    Arguments are those of ``default_run``.
    """
    mark = PLAN if what == "compare" else LOG
    is_given = len(texts) == 1 and os.path.exists(f"{texts[0]}/{mark}")  # noqa: PTH110
    path = Path(texts[0]) if is_given else _first_run(texts, what)
    is_there = os.path.isdir(path)  # noqa: PTH112 - which never raises
    return f", such as {command_line(['--run', path])}" if is_there else ""
