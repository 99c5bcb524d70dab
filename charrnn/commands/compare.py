"""``charrnn compare``: the same text for several cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from charrnn import recipe
from charrnn.command_words import comparison_command
from charrnn.commands import options
from charrnn.commands.reporting import (
    check_report,
    origin_of_page,
    refuse_output_in_text,
    refuse_report_in_text,
    show_and_report,
)
from charrnn.commands.stdio import say, waits_unread
from charrnn.commands.stopping import Stopped, compiling
from charrnn.config import BUDGETS, DeviceName, MatchName
from charrnn.errors import CorpusError, UsageError
from charrnn.layout import PLAN
from charrnn.text.files import absolute_names

if TYPE_CHECKING:
    import torch

    from charrnn.runs.comparison_plan import Plan


#: title -> flags: how the help groups the options.
GROUPS = {
    "Models": "--cell --match --hidden --layers --embedding",
    "Budget": "--minutes --epochs --steps",
    "Runs": "--seeds --seed --run --resume",
    "Text": "--valid --valid-share --test-share --encoding --min-count",
    "Update": "--batch-size --bptt --optimiser --lr --clip-norm",
    "Against learning by heart": options.AGAINST_LEARNING_BY_HEART,
    "Device and output": "--device --precision --report --json --quiet",
}


def compare(
    context: typer.Context,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Files, folders or globs (default: Python's own standard library).",
            show_default=False,
        ),
    ] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<rnn|lstm|gru>",
            help="A cell to compare; give it once for each (default: all three).",
        ),
    ] = None,
    match: Annotated[
        MatchName | None,
        typer.Option(
            help="Match the cells by parameters (default; as nearly as widths allow) or by width "
            "(hidden)."
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Runs of each cell, for mean and spread (default 1); --resume can add more."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Minutes of training, validating and saving, for each run (default 3)."),
    ] = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=options.run_folder,
            help="The comparison's folder (default: checkpoints/TEXT-compare).",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the comparison in --run, on its device. --seeds may be larger; TEXT "
            "and --valid say where its texts are now, if they have moved.",
        ),
    ] = False,
    report: options.Report = None,
    valid: options.Valid = None,
    valid_share: Annotated[
        float | None,
        typer.Option(help="Share held out to choose the best checkpoint on (default 0.1)."),
    ] = None,
    test_share: Annotated[
        float | None,
        typer.Option(
            help="Share at the very end to compare on (default 0.1; 0: on the validation part)."
        ),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of the text (default utf-8).")
    ] = None,
    min_count: options.MinCount = None,
    layers: options.Layers = None,
    hidden: Annotated[
        int | None,
        typer.Option(help="Units of the LSTM, which the others are matched to (default: by rule)."),
    ] = None,
    embedding: options.Embedding = None,
    dropout: options.Dropout = None,
    weight_drop: options.WeightDrop = None,
    dropout_masks: options.DropoutMasks = None,
    loss_temperature: options.LossTemperature = None,
    batch_size: Annotated[int | None, typer.Option(help="Lanes (default: the LSTM's).")] = None,
    bptt: Annotated[
        int | None, typer.Option(help="Window of the gradient (default: the LSTM's).")
    ] = None,
    optimiser: options.Optimiser = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate: Muon's, and AdamW's moves with it, by each cell's ratio; "
            "with adamw or sgd, that of all weights (default: by rule; adamw 0.005, sgd 1)."
        ),
    ] = None,
    weight_decay: options.WeightDecay = None,
    clip_norm: options.ClipNorm = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the first run (default 1); the others count up from it."),
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    as_json: options.AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only notes and the table.")] = False,
) -> int:
    """Train several cells on the same text and say which does best.

    All read the same text in the same order, with the same layers and lanes, and have the same
    number of parameters (--match hidden: the same width). With --minutes a faster cell reads more.
    Learning rates, weight decay, dropout and its masks, weight drop and loss temperature are each
    cell's own unless you give them. Ctrl-C saves and exits. A run whose loss is no longer finite
    is left out, and --resume tries it again.

    The page of --report is made when all runs are done. For a comparison that is finished already,
    --resume makes it without training anything.
    """
    from charrnn.runs.comparison_folder import name_moved, take_up
    from charrnn.runs.comparison_plan import Plan

    given = options.fields_given(context, Plan, but=("texts", "valid", "device"))
    if cell:
        given["cells"] = tuple(cell)
    if resume and run is None:
        hint = options.such_as(texts or (), "compare")
        raise UsageError(
            f"--resume needs --run DIR, the folder of the comparison to go on with{hint}"
        )
    if resume and given.keys() - {"seeds"}:
        raise UsageError(
            "--resume goes on with the comparison as it was planned: give only --run DIR, "
            "--seeds to add runs, and TEXT or --valid if a text has moved"
        )
    options.refuse_both(valid, valid_share)
    if report is not None:
        check_report(report)
    if not given.keys() & BUDGETS:
        given["minutes"] = recipe.DEFAULT_MINUTES

    begun: Plan | None = None
    changed: list[str | Path] = []
    if resume:
        assert run is not None
        folder = run
        plan, begun, changed = take_up(run, seeds, texts or (), valid or ())
    else:
        named, held_out = absolute_names(texts or ()), absolute_names(valid or ())
        plan = Plan(texts=named, valid=held_out, **given)
        refuse_output_in_text((*(texts or ()), *(valid or ())))
        folder = run or options.default_run(texts or (), "compare")

    from charrnn.compute.compiler import TRAINING

    with compiling(TRAINING, device, with_samples=report is not None) as stop:
        with stop.loading():
            from charrnn.commands.watching import watch_comparison
            from charrnn.views.score_view import print_comparison
            from charrnn.views.terminal import to_json

        where = _device(device, plan, folder)
        if not resume:
            plan = replace(plan, device=cast("DeviceName", where.type))
            if not texts and waits_unread():
                say("note: standard input is not read: give the text as a file")
        if report is not None:
            refuse_report_in_text(report, plan, folder)
        to = ("--report", report) if report is not None else ()
        on = ("--device", device) if device != "auto" else ()
        command = comparison_command(folder, *changed, *to, *on)
        go_on = f"go on with: {command}"
        try:
            comparison = watch_comparison(
                folder, plan, stop, begun=begun, device=where, command=command, quiet=quiet
            )
        except Stopped:
            if (folder / PLAN).exists():  # after the plan was written
                say(go_on)
            raise
        if comparison is None:
            assert stop.received
            say(go_on)
            return 128 + stop.received

        def show() -> None:
            if as_json:
                print(to_json(comparison.to_list(), indent=2))
            else:
                print_comparison(comparison)

        def page() -> str:
            from charrnn.views.portrait import portray_comparison
            from charrnn.views.report import comparison_page

            stop.leave_at_once()
            if not quiet:
                say("inspecting a run of each cell, for the report ...")
            try:
                portraits, runs = portray_comparison(comparison)
            except CorpusError as error:
                raise CorpusError(f"{error}{name_moved(plan, command)}") from error
            by = [result.trained_by for result, _ in runs if result.trained_by is not None]
            return comparison_page(comparison, portraits, runs, origin_of_page(where, by))

        try:
            show_and_report(show, report, page)
        except Stopped:
            say(f"all runs are done, but there is no report yet; {go_on}")
            raise
        except BrokenPipeError:
            if not comparison.failures:
                raise
    return 1 if comparison.failures else 0


def _device(name: str, plan: Plan, folder: Path) -> torch.device:
    """Return where a comparison computes: where the user says, or where it began.

    Args:
        name: the user's --device.
        plan: the comparison's.
        folder: the comparison's.

    Raises:
        RunFolderError: one of its results is not usable.
        UsageError: this machine has no such device.
    """
    import torch

    from charrnn.compute.device import choose_device
    from charrnn.runs.comparison_folder import read_results

    began = plan.device
    if name != "auto" or began is None:
        return choose_device(name)
    if all(read_results(folder, plan)):  # nothing is left to train: any machine will do
        return torch.device(began)
    try:
        return choose_device(began)
    except UsageError:
        raise UsageError(
            f"the comparison began on {began}, and there is none here: go on with it where there "
            "is one, or compare anew in another folder with --run"
        ) from None
