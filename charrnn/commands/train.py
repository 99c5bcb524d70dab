"""``charrnn train``: a new run, or one that goes on."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charrnn import recipe
from charrnn.command_words import command_line
from charrnn.commands import options
from charrnn.commands.reporting import refuse_output_in_text
from charrnn.commands.stdio import print_path, say, spooled, waits_unread
from charrnn.commands.stopping import compiling
from charrnn.config import BUDGETS, CellName, ModelConfig, TextChoices, TrainConfig
from charrnn.errors import RunFolderError, UsageError
from charrnn.wording import duration, shown

if TYPE_CHECKING:
    from charrnn.runs.run import Run
    from charrnn.storage.runfolder import RunFolder


#: title -> flags: how the help groups the options.
GROUPS = {
    "Model": "--cell --hidden --layers --embedding",
    "Budget": "--minutes --epochs --steps",
    "Run": "--run --resume --init-from --seed",
    "Text": "--valid --valid-share --test-share --encoding --min-count",
    "Update": "--batch-size --bptt --loss-last --reset-state --optimiser --lr --clip-norm "
    "--clip-value --scale-norm",
    "Against learning by heart": options.AGAINST_LEARNING_BY_HEART,
    "Validation and saving": "--validate-every --patience --keep",
    "Device and output": "--device --precision --json --quiet",
}


def train(
    context: typer.Context,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Files, folders, globs, or - for standard input "
            "(default: Python's own standard library).",
            show_default=False,
        ),
    ] = None,
    cell: Annotated[
        CellName | None, typer.Option(help="The recurrent cell (default lstm).")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Minutes of training, validating and saving (default 3)."),
    ] = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=options.run_folder,
            help="The run's folder (default: checkpoints/TEXT-CELL).",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --run exactly where it stopped, on the device it used.",
        ),
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            parser=options.checkpoint,
            help="Start from this checkpoint's weights and vocabulary.",
        ),
    ] = None,
    valid: options.Valid = None,
    valid_share: Annotated[
        float | None,
        typer.Option(help="Share of the text held out to validate (default 0.1; 0: none)."),
    ] = None,
    test_share: Annotated[
        float | None,
        typer.Option(
            help="Share at the very end kept for a test, neither trained nor validated on "
            "(default 0)."
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="Encoding of the text (default utf-8); bytes reads any file, as 256 symbols."
        ),
    ] = None,
    min_count: options.MinCount = None,
    layers: options.Layers = None,
    hidden: Annotated[
        int | None, typer.Option(help="Units of each layer (default: by rule).")
    ] = None,
    embedding: options.Embedding = None,
    dropout: options.Dropout = None,
    weight_drop: options.WeightDrop = None,
    dropout_masks: options.DropoutMasks = None,
    loss_temperature: options.LossTemperature = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Lanes: how many places in the text are read side by side (default: by rule)."
        ),
    ] = None,
    bptt: Annotated[
        int | None,
        typer.Option(help="Window: how many characters back a gradient goes (default: by rule)."),
    ] = None,
    loss_last: Annotated[
        int | None,
        typer.Option(
            help="Count the loss on each window's last N characters only, and move the window by N."
        ),
    ] = None,
    reset_state: Annotated[
        bool,
        typer.Option(
            "--reset-state",
            help="Start every window from the zero state, not from where the last one ended.",
        ),
    ] = False,
    optimiser: options.Optimiser = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate: Muon's, and AdamW's moves with it; with adamw or sgd, that "
            "of all weights (default: by rule; adamw 0.005, sgd 1)."
        ),
    ] = None,
    weight_decay: options.WeightDecay = None,
    clip_norm: options.ClipNorm = None,
    clip_value: Annotated[
        float | None,
        typer.Option(help="Instead of --clip-norm: cut each entry of the gradient to this size."),
    ] = None,
    scale_norm: Annotated[
        float | None,
        typer.Option(help="Instead of --clip-norm: scale every gradient to this norm, up or down."),
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Steps between validations (default: by rule).")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after N validations in a row without a new best (default: never). The best "
            "is kept in any case."
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(help="How many earlier checkpoints to keep besides the last (default 1)."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of weights, dropout and the samples shown in training (default 1)."
        ),
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    as_json: options.AsJson = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print only notes and the run's folder.")
    ] = False,
) -> int:
    """Train a model on a text.

    The last tenth of the text is held out to validate. The run's folder gets the best and the last
    checkpoint and a log; its path is printed on stdout at the end. Ctrl-C saves and exits.

    Whatever you do not give is chosen by rule, from the size of the text, the device and the
    budget. What is chosen is shown, most of it before the first step.

    On a terminal the progress is redrawn in place. With TERM=dumb before the command it comes line
    by line instead, which suits a screen reader.
    """
    budget = recipe.given({"minutes": minutes, "epochs": epochs, "steps": steps})
    model = options.fields_given(context, ModelConfig, but=("cell",))
    training = options.fields_given(context, TrainConfig, but=(*BUDGETS, "init_from"))
    reading = options.fields_given(context, TextChoices, but=("texts", "valid"))
    if as_json and quiet:
        raise UsageError("--json and --quiet cannot be used together: give one")
    if keep is not None and keep < 0:
        raise UsageError(f"--keep must be 0 or more, not {keep}")
    if resume and run is None:
        hint = options.such_as(texts or (), cell or recipe.DEFAULT_CELL)
        raise UsageError(f"--resume needs --run DIR, the folder of the run to go on with{hint}")
    options.refuse_both(valid, valid_share)
    text = TextChoices(texts=tuple(texts or ()), valid=tuple(valid or ()), **reading)
    choices = recipe.Choices(cell=cell, budget=budget, model=model, training=training)
    # Check every number before torch is imported and before anything is written. The window of a
    # resumed run is not known yet: 1 in place of --loss-last fits any, and 0 or less is refused.
    fits = {"loss_last": min(1, loss_last)} if resume and bptt is None and loss_last else {}
    recipe.refuse_nonsense(replace(choices, training=training | fits))
    if not resume:
        refuse_output_in_text((*text.texts, *text.valid))

    command = command_line(["charrnn", *sys.argv[1:]])
    from charrnn.compute.compiler import TRAINING

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(compiling(TRAINING, device))

        with stop.loading():
            from charrnn.commands.watching import watch_run
            from charrnn.compute.device import choose_device
            from charrnn.runs.comparison_folder import refuse_comparison
            from charrnn.runs.resuming import resume as resume_run
            from charrnn.runs.starting import start as start_run
            from charrnn.storage.runfolder import RunFolder

        if resume:
            assert run is not None
            where = None if device == "auto" else choose_device(device)  # None: where it did before
            refuse_comparison(run)
            folder = stack.enter_context(RunFolder.open_existing(run, command=command))
            typed = stack.enter_context(spooled(text.texts, stop))
            began = {"init_from": None if init_from is None else str(init_from.absolute())}
            fixed = recipe.given({"cell": cell, **model, **training, **reading, **began})
            may_change = {name: fixed.pop(name) for name in ("lr", "patience") if name in fixed}
            trained = resume_run(
                folder,
                device=where,
                changes=budget | may_change,
                fixed=fixed,
                texts=text.texts,
                valid_texts=text.valid,
                spooled=typed,
                keep=keep,
            )
            if trained.was_finished:
                trained.save_names()
        else:
            where = choose_device(device)
            folder = stack.enter_context(_new_folder(run, choices, text, init_from, command))
            typed = stack.enter_context(spooled(text.texts, stop))
            trained = start_run(
                choices,
                text,
                folder=folder,
                device=where,
                init_from=init_from,
                spooled=typed,
                keep=1 if keep is None else keep,
            )
            if not texts and waits_unread():
                trained.notes.append("standard input is not read: give - as TEXT to train on it")

        if trained.was_finished and not as_json:
            if not quiet:
                _say_finished(trained)
            print_path(trained.folder.path)
            return 0
        return watch_run(trained, stop, as_json=as_json, quiet=quiet)


def _new_folder(
    run: Path | None,
    choices: recipe.Choices,
    text: TextChoices,
    init_from: Path | None,
    command: str,
) -> RunFolder:
    """Hold the folder of a new run: the one that --run names, or one that no run has taken yet.

    Raises:
        CharrnnError: it cannot be made, or is no place for a run.
    """
    from charrnn.runs.comparison_folder import refuse_comparison
    from charrnn.storage.reading import refuse_text_within
    from charrnn.storage.runfolder import RunFolder
    from charrnn.storage.trained import shape_of

    if run is not None:
        refuse_comparison(run)
        refuse_text_within(text, run, "a run")
        return RunFolder.create(run, command=command)
    cell = choices.cell or (recipe.DEFAULT_CELL if init_from is None else shape_of(init_from).cell)
    path = options.default_run(text.texts, cell)
    while True:
        try:
            return RunFolder.create(path, command=command)
        except RunFolderError:
            # A command that was started at the same time may have been faster.
            taken, path = path, options.default_run(text.texts, cell)
            if path == taken:
                raise


def _say_finished(run: Run) -> None:
    """Say that a run has nothing left to do, and what would make it go on."""
    larger = ["--patience"] if run.is_out_of_patience else []
    larger += ["--minutes, --epochs or --steps"] if run.is_used_up else []
    progress = run.progress
    say(
        f"{shown(run.folder.path)}: finished already, after {progress.step:,} steps and "
        f"{duration(progress.seconds)}: give a larger {' and a larger '.join(larger)} to go on"
    )
