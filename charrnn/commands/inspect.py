"""``charrnn inspect``: what a run is, and what its model does on a text."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from charrnn.command_words import flag
from charrnn.commands import options
from charrnn.commands.reporting import (
    check_report,
    origin_of_page,
    refuse_overwriting,
    show_and_report,
)
from charrnn.commands.stdio import say, say_where, spooled
from charrnn.commands.stopping import StopSignals, compiling
from charrnn.config import MEASUREMENTS, InspectConfig, TextSource
from charrnn.errors import UsageError
from charrnn.wording import joined

#: title -> flags: how the help groups the options.
GROUPS = {
    "Text": "--text --part --encoding --characters",
    "Measurements": "--only --unit --spectral-radius --bptt --loss-last --seed",
    "Device and output": "--device --report --json",
}


def inspect(
    context: typer.Context,
    checkpoint: options.Checkpoint,
    text: options.Texts = None,
    part: options.Part = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of the text (default: the training's).")
    ] = None,
    characters: Annotated[
        int | None,
        typer.Option(
            help="How many characters to look at, at the end of the text (default 20,000)."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar=f"<{'|'.join(MEASUREMENTS)}>",
            help="What to measure; give it once for each (default: all; truncation only with "
            "--bptt or --loss-last).",
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            help="Colour the last 1,000 characters by this unit: 1.17 is unit 17 of layer 1; 1.17c "
            "its c, in an LSTM."
        ),
    ] = None,
    spectral_radius: Annotated[
        list[float] | None,
        typer.Option(
            metavar="RADIUS",
            help="Also show the gradient flow with the recurrent matrices scaled to this spectral "
            "radius; may be given several times.",
        ),
    ] = None,
    bptt: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Compare the gradient by windows of this length with the full one (default: "
            "powers of 2); may be given several times.",
        ),
    ] = None,
    loss_last: Annotated[
        int | None,
        typer.Option(help="Count the loss on the last N characters of these windows only."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the untrained weights to compare with (default: the run's)."),
    ] = None,
    report: options.Report = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Say what a run is, or measure what its model does on a text.

    Without a text, say what the checkpoint records (for a run's folder, its newest checkpoint):
    text, model, training, machine, how far the run has come and, if it is not finished, how to go
    on with it.

    With a text, measure these, or only some with --only:

    \b
    step        one step's equations, in numbers
    flow        how far back one character's loss sends a gradient
    memory      what a reset of the state costs
    pace        how slowly states change (autocorrelation at lag 1)
    gates       how often gates are open or closed
    units       units that follow quotes, brackets or words
    clipping    the training's gradient norms, and how far a cut turns a gradient
    truncation  the gradient by windows against the full one

    Name a text with --text, or take a part of the run's own with --part. If that text has moved,
    give both: --text says where it is now.
    """  # noqa: D301 - click's mark of lines that stay as they are
    if text is None and part is None:
        # What may be given several times is () where it is not given.
        names = [
            flag(option.name)
            for option in context.command.params
            if option.name not in ("checkpoint", "as_json")
            and context.params[option.name] not in (option.default, ())
        ]
        if names:
            need = "needs" if len(names) == 1 else "need"
            raise UsageError(
                f"{joined(names, 'and')} {need} a text: give --text FILE, or --part valid for what "
                "was held out"
            )
        _print_status(checkpoint, as_json)
        return
    source = TextSource(texts=tuple(text or ()), part=part, encoding=encoding)
    config = InspectConfig(**options.fields_given(context, InspectConfig, but=()))
    if report is not None:
        check_report(report)

    from charrnn.compute.compiler import TRAINING

    # Gradients take all that training does.
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(compiling(TRAINING, device, with_samples=report is not None))

        with stop.loading():
            from charrnn.analysis.activity import Unit
            from charrnn.commands.watching import watch_inspection
            from charrnn.compute.device import choose_device
            from charrnn.runs.subject import load_subjects
            from charrnn.storage.trained import shape_of
            from charrnn.views.inspection_view import print_inspection
            from charrnn.views.terminal import to_json

        where = choose_device(device)
        # A unit that the model lacks is refused before a long text is read.
        watched = None if unit is None else Unit.parse(unit, shape_of(checkpoint))
        (subject,) = load_subjects(
            [checkpoint], source, where, tell=say,
            spool=lambda: stack.enter_context(spooled(source.texts, stop)),
        )  # fmt: skip
        read = (*source.texts, *subject.texts)
        refuse_overwriting("--report", report, subject.sources(), read)
        origin = {"device": where.type} | subject.origin(source) if as_json else {}
        say_where("inspecting", where)
        if subject.vocabulary.is_bytes:
            say("the text is read as bytes: a character is a byte")
        seen, stretch, inspection = watch_inspection(
            subject, config, unit=watched, is_named=part is None
        )

        def show() -> None:
            if as_json:
                print(to_json(inspection.to_dict(str(checkpoint), subject.model) | origin))
            else:
                print_inspection(inspection)

        def page() -> str:
            from charrnn.views.portrait import portray_inspected
            from charrnn.views.report import inspection_page

            portrait = portray_inspected(subject, seen, stretch, inspection)
            return inspection_page(portrait, subject.called(source), origin_of_page(where))

        show_and_report(show, report, page)


def _print_status(checkpoint: Path, as_json: bool) -> None:
    """Print what a run is, and how far it has come.

    Args:
        checkpoint: a checkpoint of the run, or its folder.
        as_json: print it as JSON.

    Raises:
        CheckpointError: it is not a complete checkpoint.
    """
    with StopSignals() as stop, stop.loading():
        from charrnn.runs.status import read_status
        from charrnn.views.run_words import LABEL, status_lines
        from charrnn.views.terminal import print_words, to_json

    status = read_status(checkpoint)
    if as_json:
        print(to_json(status.to_dict()))
        return
    for line in status_lines(status):
        print_words(line, LABEL)
