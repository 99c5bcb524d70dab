"""Describe a run and its progress, in the lines that ``train`` and ``inspect`` show.

Nothing here needs the run's text or weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from charrnn.command_words import command_line, resume_command
from charrnn.compute.device import kind_in_words
from charrnn.config import OptimiserName
from charrnn.layout import LAST
from charrnn.nats import in_bits
from charrnn.runs.run import RunSummary
from charrnn.runs.status import RunStatus
from charrnn.text.files import EMBEDDED
from charrnn.wording import counted, duration, shown

#: What an introduction calls the update rules.
UPDATE_RULES: dict[OptimiserName, str] = {"muon": "Muon", "adamw": "AdamW", "sgd": "SGD"}
#: Width of the labels in an introduction, in columns.
LABEL = 8


def introduction(run: RunSummary, device: str, *, is_planned: bool) -> list[str]:
    """Return the lines that describe a run: text, model, data, update, device and budget.

    Args:
        run: the run, new or begun before.
        device: where it computes, in words.
        is_planned: whether to show the settings that a plan determines, too; a new run with a
            budget of minutes has no plan yet.

    Raises:
        ValueError: as ``RunSummary.steps_per_epoch``.
    """
    shape, text = run.shape, run.text
    valid, test = text.length("valid"), text.length("test")
    held = f", {valid:,} held out to validate" if valid else ", none held out"
    if test:
        held += f", {test:,} to test"
    files = f", in {run.files:,} files" if run.files > 1 else ""
    trained = counted(text.length("train"), run.unit)
    return [
        f"text    {_text(text.texts)}: {trained} to train on{held}{files}",
        f"model   {shape.cell.upper()} {shape.layers} x {shape.hidden}, embedding "
        f"{shape.embedding}, {run.parameters:,} parameters, {shape.vocabulary:,} symbols",
        f"data    {_data(run)}",
        f"update  {', '.join(_update(run, is_planned))}",
        f"device  {device}, {run.config.precision}; {_budget(run)}{_epochs(run)}",
    ]


def _text(names: Sequence[str]) -> str:
    """Return a text's name: the first of those given, relative to the current folder."""
    if not names:
        return EMBEDDED
    first = "standard input" if names[0] == "-" else shown(names[0])
    with suppress(ValueError, FileNotFoundError):  # not below the current folder, or that is gone
        first = shown(Path(names[0]).relative_to(Path.cwd()))
    return first if len(names) == 1 else f"{first} and {counted(len(names) - 1, 'name')} more"


def _data(run: RunSummary) -> str:
    """Return how the text is read in training."""
    config = run.config
    window = f"windows of {config.bptt}"
    if config.loss_last:
        window += f" (loss on the last {config.loss_last})"
    if config.reset_state:
        window += ", each from the zero state"
    steps = counted(run.steps_per_epoch, "step")
    return f"{counted(config.batch_size, 'lane')}, {window}, {steps} an epoch"


def _update(run: RunSummary, is_planned: bool) -> list[str]:
    """Return the learning rates, clipping, regularisation and seed."""
    config = run.config
    rates = f"{UPDATE_RULES[config.optimiser]} {config.lr:g}"
    if config.optimiser == "muon":
        rates += f" and AdamW {config.lr_adam:g}"
    clip = f"clip norm {config.clip_norm:g}" if config.clip_norm else "no clipping"
    if config.clip_value:
        clip = f"clip value {config.clip_value:g}"
    if config.scale_norm:
        clip = f"scaled to norm {config.scale_norm:g}"
    held = regularisers(run, by_plan=None if is_planned else False)
    return [rates, clip, *held, f"seed {config.seed}"]


def trained_how(runs: Sequence[RunSummary]) -> tuple[str, list[str]]:
    """Return how the runs that checkpoints are of were trained.

    Returns:
        What several updates and budgets have in common, if anything; and for each run what they
        have of their own, and how far its checkpoint has come.
    """
    each = [[*_update(run, is_planned=True), f"for {_budget(run)}", *_changes(run)] for run in runs]
    alike = [words for words in each[0] if all(words in other for other in each[1:])]
    common = alike if len(runs) > 1 else []
    own = [", ".join(words for words in of_run if words not in common) for of_run in each]
    begin = "" if common else "trained with "
    come = [f"this checkpoint after {come_to(run)}" for run in runs]
    return ", ".join(common), [
        f"{begin}{words}; {after}" if words else after
        for words, after in zip(own, come, strict=True)
    ]


def _changes(run: RunSummary) -> Iterator[str]:
    """Yield what a run was given anew, and since when."""
    for change in run.changes:
        was, now = (shown(option) or "nothing" for option in (change.was, change.now))
        yield f"{now} from step {change.step:,} on (was {was})"


def _budget(run: RunSummary) -> str:
    config = run.config
    if config.minutes is not None:
        return counted(config.minutes, "minute")
    steps = counted(run.progress.planned_steps or 0, "step")
    return f"{counted(config.epochs, 'epoch')} = {steps}" if config.epochs is not None else steps


def _epochs(run: RunSummary) -> str:
    """Return what a budget of steps is in epochs; a plan for minutes says it by itself."""
    planned = run.progress.planned_steps
    if planned is None or run.config.minutes is not None or run.config.epochs is not None:
        return ""
    return f" = {planned / run.steps_per_epoch:.2f} epochs"


def regularisers(run: RunSummary, *, by_plan: bool | None) -> list[str]:
    """Return a run's regularisation: dropout, weight decay and loss temperature.

    Args:
        run: the run.
        by_plan: True: only what the plan determines; False: only the rest; None: both.
    """
    config = run.config
    drops = _dropout(run) or (["no dropout"] if by_plan else [])
    kinds = (
        (config.dropout_by_plan, drops),
        (config.decay_by_plan, _decay(run)),
        (config.temperature_by_plan, _temperature(run)),
    )
    return [one for planned, said in kinds if by_plan in (None, planned) for one in said]


def _dropout(run: RunSummary) -> list[str]:
    shape, masks = run.shape, run.config.dropout_masks
    drops = []
    if shape.dropout:
        drops.append(f"dropout {shape.dropout:g}{f' ({masks} masks)' if masks > 1 else ''}")
    if shape.weight_drop:
        drops.append(f"weight drop {shape.weight_drop:g}")
    return drops


def _decay(run: RunSummary) -> list[str]:
    too = " (embedding and head too)" if run.config.decay_embedding else ""
    share = run.config.weight_decay
    return [f"weight decay {share:g}{too}"] if share else []


def _temperature(run: RunSummary) -> list[str]:
    temperature = run.config.loss_temperature
    return [f"loss temperature {temperature:g}"] if temperature != 1 else []


def why_ended(reason: str, patience: int | None) -> str:
    """Return in words why a training ended.

    Args:
        reason: as in ``Finished``.
        patience: the run's, in validations.
    """
    if reason == "patience":
        assert patience is not None
        return f"stopped early (no new best in {counted(patience, 'validation')})"
    words = {"done": "done", "SIGINT": "stopped by Ctrl-C and saved"}
    return words.get(reason, f"stopped by {reason} and saved")


def come_to(run: RunSummary, of: int | None = None) -> str:
    """Return how far a run has come: steps, characters, time.

    Args:
        run: the run.
        of: how many steps are planned, to be shown as well.
    """
    progress = run.progress
    steps = counted(progress.step, "step")
    if of is not None:
        steps = f"{progress.step:,} of {counted(of, 'step')}"
    return f"{steps}, {counted(progress.characters, run.unit)}, {duration(progress.seconds)}"


def best_line(run: RunSummary, marks: Mapping[str, float] | None = None) -> str | None:
    """Return the best validation so far; None before the first.

    Args:
        run: the run.
        marks: named losses to compare it with, in nats per character, on the same characters.
    """
    progress, valid = run.progress, run.text.length("valid")
    if progress.best_nats is None or progress.best_step is None:
        return None
    best = f"best validation {both_units(progress.best_nats)} at step {progress.best_step:,}"
    scored = progress.validate_characters
    if scored is not None and scored < valid:
        best += f", of the first {counted(scored, run.unit)} held out"
    beside = ", ".join(f"{name} {nats:.3f} nats" for name, nats in (marks or {}).items())
    return "; ".join(filter(None, [best, beside]))


def sample_line(path: Path) -> str:
    """Return a line with the command that samples from a finished run."""
    return f"sample from it with: {command_line(['charrnn', 'sample', path])}"


def status_lines(status: RunStatus) -> list[str]:
    """Return a run's description, where it was made, its progress and the next command."""
    run, progress = status.run, status.run.progress
    device = kind_in_words(shown(status.device), status.threads)
    charrnn, torch = (shown(status.versions[name]) for name in ("charrnn", "torch"))
    where = "" if status.processor is None else f", on {shown(status.processor)}"
    of = None if status.is_finished else progress.planned_steps
    come = f"{come_to(run, of)} ({progress.step / run.steps_per_epoch:.2f} epochs)"
    lines = introduction(run, device, is_planned=True)
    lines.append(f"made    with torch {torch} and version {charrnn} of charrnn{where}")
    if run.config.init_from is not None:
        digest = run.config.init_sha256
        which = "" if digest is None else f", checksum {shown(digest)}"
        lines.append(f"from    the weights of {shown(run.config.init_from)}{which}")
    lines += [f"changed {words}" for words in _changes(run)]
    lines.append(f"file    {shown(status.file)}")
    if not status.is_state:
        lines.append(f"weights only, after {come}")
    elif status.is_finished:
        lines.append(f"{why_ended(run.end, run.config.patience)} after {come}")
    else:
        lines.append(f"so far {come}")
    if (best := best_line(run)) is not None:
        lines.append(best)
    if status.newer is not None:
        inspected = command_line(["charrnn", "inspect", status.newer])
        lines.append(f"its run's newest state: {inspected}")
    elif status.go_on is not None:
        lines.append(f"go on with: {status.go_on}")
    elif status.is_finished is False:
        command = resume_command(Path("DIR"), texts=run.text.to_name)
        lines.append(f"to go on, save it as {LAST} in a folder of its own, DIR: {command}")
    else:
        lines.append(sample_line(status.path))
    return lines


def both_units(nats: float) -> str:
    """Return a loss in nats and in bits."""
    return f"{nats:.4f} nats ({bits(nats)})"


def bits(nats: float) -> str:
    """Return a loss in bits."""
    return f"{in_bits(nats):.3f} bits"
