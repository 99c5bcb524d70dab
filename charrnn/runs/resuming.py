"""The run in a folder, restored exactly as it was; ``training.train`` then goes on with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from charrnn import __version__, recipe
from charrnn.command_words import flag, options_again, resume_command, validating_on
from charrnn.compute.device import choose_device, multiplies_bf16
from charrnn.compute.processor import processor
from charrnn.config import BUDGETS, BY_PLAN, ModelConfig, PartName, TrainConfig
from charrnn.errors import CheckpointError, CorpusError, UsageError
from charrnn.layout import BEST
from charrnn.runs.assembling import (
    assemble,
    lanes_of,
    refuse_too_large,
    refuse_validations,
    steps_of,
)
from charrnn.runs.run import Best, Change, Progress, Run, SavedState, changes_in
from charrnn.storage.checkpoint import Checkpoint, DamagedCheckpointError, load
from charrnn.storage.reading import (
    TextRecord,
    learnt_before,
    readable,
    refuse_another_text,
    refuse_too_many_names,
)
from charrnn.storage.runfolder import RunFolder
from charrnn.storage.trained import trained_model
from charrnn.text.corpus import Part
from charrnn.text.decoding import text_encoding
from charrnn.text.files import absolute_names, embedded_corpus
from charrnn.text.scanning import scan
from charrnn.text.stream import Lanes
from charrnn.text.vocabulary import Vocabulary
from charrnn.wording import joined, shown


def resume(
    folder: RunFolder,
    *,
    device: torch.device | None,
    changes: Mapping[str, Any],
    fixed: Mapping[str, Any] = MappingProxyType({}),
    texts: Sequence[str] = (),
    valid_texts: Sequence[str] = (),
    spooled: Path | None = None,
    keep: int | None = None,
) -> Run:
    """Restore the run in a folder, exactly as its last checkpoint has it.

    Args:
        folder: the run's, locked.
        device: where to compute; None: where the run computed before.
        changes: fields of TrainConfig to change: a budget, lr, patience.
        fixed: other options that the user gives, by field: the run must have these values.
        texts: where the text lies now, if it has moved.
        valid_texts: where the separate validation text lies now, if it has moved.
        spooled: where standard input was stored, for the text "-".
        keep: how many earlier checkpoints to keep; None: as many as before.

    Raises:
        CheckpointError: the folder has no intact checkpoint, or a field is not usable.
        CorpusError: the text is not the one that the run was started on.
        RunFolderError: the folder cannot be read, or its log cannot be written.
        UsageError: a change makes no sense, the run has another value than one in ``fixed``, or
            the names of its texts are more than a checkpoint can hold.
    """
    checkpoint, notes = folder.load_last()
    assert checkpoint.path is not None, "it was loaded from there"
    path = checkpoint.path
    model, vocabulary = trained_model(checkpoint)
    saved = SavedState(
        path=path,
        progress=checkpoint.record("progress", Progress),
        config=checkpoint.record("training", TrainConfig),
        text=checkpoint.record("text", TextRecord),
        keep=max(0, checkpoint.require("keep", int)),
        device=checkpoint.require("device", str),
    )
    so_far = changes_in(checkpoint)
    progress = replace(saved.progress)
    _refuse_others(fixed, saved, model.config, vocabulary)
    folder.keep = saved.keep if keep is None else keep
    given = options_again({**changes, "keep": keep, "device": device and device.type})

    def way_on(texts: Sequence[str] = texts, valid_texts: Sequence[str] = valid_texts) -> str:
        """Return the command that resumes the run, with what the user gives now or these texts."""
        return resume_command(folder.path, *given, *validating_on(valid_texts), texts=texts)

    record = _moved(saved.text, texts, valid_texts, way_on)
    refuse_too_many_names(record)
    device = device or choose_device(saved.device)
    notes += _other_machine(checkpoint, device)
    if record.valid is None:
        refuse_validations(changes)
    config, changed = _changed(saved.config, progress, changes)
    if config.precision == "bf16" and not multiplies_bf16(device):
        config = replace(config, precision="fp32")
        notes.append("precision fp32 (was bf16, which this device has no instructions for)")
    try:
        train, valid = _read_again(record, spooled, way_on)
        lanes = lanes_of(train, vocabulary, config)
    except ValueError as error:
        raise CheckpointError(f"{shown(path)}: the field 'text' is not usable: {error}") from error
    # After --init-from it is the other model's; the first versions did not record that.
    is_own = saved.config.init_from is None and "init_from" in checkpoint.meta["training"]
    of_text = Vocabulary.from_counts(train.counts, record.encoding, vocabulary.min_count)
    if is_own and vocabulary != of_text:
        raise CheckpointError(
            f"{shown(path)}: the field 'vocabulary' is not that of the run's text"
        )
    is_another = _is_another_budget(config, saved.config)
    if is_another:
        _refuse_used_up(config, progress, lanes)
    run = assemble(
        model.to(device),
        vocabulary=vocabulary,
        config=config,
        train=train,
        lanes=lanes,
        valid=valid,
        progress=progress,
        folder=folder,
        text=record,
        learnt_before=learnt_before(checkpoint),
        notes=notes,
    )
    if not run.is_over:
        elsewhere = "continue on a machine with more, or with another --device"
        is_planned = config.minutes is None and not is_another
        refuse_too_large(model.config, config, device, elsewhere, is_planned=is_planned)
    try:
        run.restore(checkpoint.tensors)
    except ValueError as error:
        raise CheckpointError(
            f"{shown(path)}: the training state is not usable: {error}"
        ) from error
    # Rows of this very step may have been logged after the checkpoint was written.
    folder.rewind_log(
        progress.step,
        logged=progress.row_updates == 0,
        validated=progress.validated_step == progress.step,
    )
    run.resumed = True
    run.saved = saved
    run.changes = so_far
    if not run.was_finished:  # else nothing comes of the changes
        run.notes += changed
        run.changes = _anew(so_far, saved.config, config, progress.step)
    run.better, said = _best(folder, progress, goes_on=not run.is_finished)
    run.notes += said
    return run


def _as_kept(fixed: Mapping[str, Any], saved: SavedState) -> dict[str, Any]:
    """Return given values as a new run has them: the codec's own name; lanes that fit the text.

    A share of the text may differ by the character that its border was rounded to.
    """
    config, kept = saved.config, dict(fixed)
    for name in ("valid", "test"):
        share = kept.get(f"{name}_share")
        if share is not None and not (name == "valid" and saved.text.valid_texts):
            length = saved.text.length(name)
            # A part of one character is none.
            is_same = abs(share * saved.text.characters - length) < (1.01 if length else 2)
            kept[f"{name}_share"] = _share(saved.text, name) if is_same else share
    if "encoding" in kept:
        kept["encoding"] = text_encoding(kept["encoding"])
    names = ("batch_size", "bptt", "loss_last")
    wished = [kept.get(name, getattr(config, name)) for name in names]
    *fitted, _ = recipe.fit_lanes(saved.text.length("train"), *wished)
    new = dict(zip(names, fitted, strict=True))
    return kept | {name: number for name, number in new.items() if name in kept}


def _share(text: TextRecord, name: PartName) -> float:
    """Return the share of a run's text that was held out, to three digits."""
    if name == "valid" and text.valid_texts:
        return 0.0
    return float(f"{text.length(name) / max(1, text.characters):.3g}")


def _refuse_others(
    fixed: Mapping[str, Any], saved: SavedState, shape: ModelConfig, vocabulary: Vocabulary
) -> None:
    """Refuse given values that differ from those the run was started with.

    One that the rules choose by the plan is refused whatever it is: the plan might change it.
    """
    has = {**shape.to_dict(), **saved.config.to_dict()}
    has |= {"encoding": saved.text.encoding, "min_count": vocabulary.min_count}
    has |= {f"{name}_share": _share(saved.text, name) for name in ("valid", "test")}
    kept = _as_kept(fixed, saved)
    planned = [name for name in kept if name in BY_PLAN and has[BY_PLAN[name]]]
    by_rule = [name for name in ("validate_every",) if has[name] is None]
    # None and 0 both mean "none" where a number may be either.
    differ = [
        name
        for name, value in kept.items()
        if name not in (*planned, *by_rule) and (value or None) != (has[name] or None)
    ]
    said = []
    if differ:
        given = [f"{flag(name)} {_short(fixed[name])}" for name in differ]
        others = ["none" if has[n] is None or has[n] is False else _short(has[n]) for n in differ]
        said.append(
            f"{joined(given, 'and')}: the run was started with {joined(others, 'and')}, and keeps "
            "that (a budget, --lr, --patience, --keep and --device may change)"
        )
    planned += [name for name in by_rule if name in kept]
    if planned:
        them = "them" if len(planned) > 1 else "it"
        said.append(
            f"{joined([*map(flag, planned)], 'and')}: the run was started without {them}, so its "
            f"plan sets {them}: leave {them} out"
        )
    if said:
        raise UsageError("; ".join(said))


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(value)


def _moved(
    record: TextRecord,
    texts: Sequence[str],
    valid_texts: Sequence[str],
    way_on: Callable[..., str],
) -> TextRecord:
    """Return the record with the new names that the user gives for texts that have moved.

    Args:
        record: of the run's text.
        texts: new names, if it has moved.
        valid_texts: the same for the text to validate on.
        way_on: returns the command that resumes the run on these texts, those of the run or those
            to validate on, with all else that the user gives.
    """
    if texts:
        record = replace(record, texts=absolute_names(texts))
    elif record.was_typed:
        raise UsageError(
            "this run read standard input, which cannot be read again: give the same text as a "
            f"file: {way_on(texts=('TEXT',))}"
        )
    if valid_texts:
        if not record.valid_texts:
            raise UsageError("--valid: this run has no separate text to validate on: leave it out")
        record = replace(record, valid_texts=absolute_names(valid_texts))
    return record


def _read_again(
    record: TextRecord, spooled: Path | None, way_on: Callable[..., str]
) -> tuple[Part, Part | None]:
    """Scan a run's text again; return what it trains on and what it validates on.

    Args:
        record: of the text.
        spooled: where standard input was stored, for the text "-".
        way_on: as for ``_moved``.

    Raises:
        CorpusError: a text cannot be read, or is not the one that the run was started on.
        ValueError: a text has no such part.
    """
    try:
        texts = readable(record.texts, spooled) or embedded_corpus()
        corpus = scan(texts, record.encoding, "none")
    except CorpusError as error:
        named = way_on(texts=("TEXT",))
        raise CorpusError(f"{error}; if the run's text has moved, name it: {named}") from error
    refuse_another_text(corpus, record.fingerprint, record.texts, known=record.files)
    valid_corpus = corpus
    if record.valid_texts:
        try:
            valid_corpus = scan(record.valid_texts, record.encoding, "none")
        except CorpusError as error:
            named = way_on(valid_texts=("TEXT",))
            moved = f"if the text to validate on has moved, name it: {named}"
            raise CorpusError(f"{error}; {moved}") from error
        refuse_another_text(
            valid_corpus, record.valid_fingerprint, record.valid_texts, "the validation text"
        )
    valid = valid_corpus.part(*record.valid) if record.valid else None
    return corpus.part(*record.train), valid


def _best(folder: RunFolder, progress: Progress, *, goes_on: bool) -> tuple[Best | None, list[str]]:
    """Look at a run's best checkpoint; forget the best in ``progress`` if it is lost.

    It is forgotten only if the run goes on: the next validation then makes another.

    Returns:
        What the best checkpoint has, if its loss is below the best in ``progress``, and notes for
        the user.
    """
    path = folder.path / BEST
    try:
        best = load(path).record("progress", Progress)
    except CheckpointError as error:
        flaw = error.flaw if isinstance(error, DamagedCheckpointError) else "missing"
        is_lost = isinstance(error, DamagedCheckpointError) or not path.exists()
        if not is_lost or progress.best_nats is None or not goes_on:
            return None, []
        progress.best_nats = progress.best_step = None
        return None, [f"{BEST}: {flaw}: the best of the validations to come takes its place"]
    nats, step = best.best_nats, best.best_step
    if nats is None or step is None or best.validate_characters != progress.validate_characters:
        return None, []
    if progress.best_nats is not None and nats >= progress.best_nats:
        return None, []
    return Best(nats, step), [
        f"{BEST} has {nats:.4f} nats, of step {step:,}: it stays until a validation is better"
    ]


def _changed(
    config: TrainConfig, progress: Progress, changes: Mapping[str, Any]
) -> tuple[TrainConfig, list[str]]:
    """Apply the changes that a resumed run may have; return notes on what they mean."""
    values, notes = {**config.to_dict(), **changes}, []
    if changes.get("lr", config.lr) != config.lr:
        values["lr_adam"] = changes["lr"] * config.lr_adam / config.lr
        notes.append(f"--lr {changes['lr']:g} (was {config.lr:g}) from step {progress.step:,} on")
    given = [name for name in BUDGETS if name in changes]
    if given:
        values |= {name: changes.get(name) for name in BUDGETS}
    new = TrainConfig(**values)
    if _is_another_budget(new, config):
        progress.planned_steps = progress.planned_at_step = progress.validate_every = None
        notes.append(
            f"the schedule is planned anew for {_budget(new)}, what was done before included (it "
            f"was {_budget(config)})"
        )
    return new, notes


def _anew(
    so_far: tuple[Change, ...], was: TrainConfig, now: TrainConfig, step: int
) -> tuple[Change, ...]:
    """Return what a run has been given anew so far, and after so many updates.

    What made no update before it was changed again is left out.
    """
    changes = list(so_far)
    for names in (BUDGETS, ("lr",), ("patience",), ("precision",)):
        before, after = (
            " ".join(options_again({name: getattr(config, name) for name in names}))
            for config in (was, now)
        )
        if before == after:
            continue
        vain = [one for one in changes if (one.step, one.now) == (step, before)]
        for one in vain:
            changes.remove(one)
            before = one.was
        # A budget is planned anew even if it is what it was before.
        if before != after or names == BUDGETS:
            changes.append(Change(step, before, after))
    return tuple(changes)


def _budget(config: TrainConfig) -> str:
    """Return the option that sets a run's budget."""
    return f"{flag(config.budget)} {_short(getattr(config, config.budget))}"


def _is_another_budget(new: TrainConfig, old: TrainConfig) -> bool:
    return any(getattr(new, name) != getattr(old, name) for name in BUDGETS)


def _refuse_used_up(config: TrainConfig, progress: Progress, lanes: Lanes) -> None:
    """Refuse a budget that is already used up.

    The run could only be declared finished as it stands.
    """
    steps, minutes = steps_of(config, lanes), progress.seconds / 60
    if config.minutes is not None and config.minutes <= minutes:
        done = _short(minutes)
    elif steps is not None and steps < progress.step:
        passes = progress.step / lanes.steps_per_epoch
        done = f"{progress.step:,}" if config.epochs is None else _short(passes)
    else:
        return
    raise UsageError(f"{_budget(config)}: {done} are done already: give more")


def _other_machine(checkpoint: Checkpoint, device: torch.device) -> list[str]:
    """Return why a resumed run may differ from one that never stopped."""
    then_and_now = [
        ("charrnn", checkpoint.versions["charrnn"], __version__),
        ("device", checkpoint.require("device", str), device.type),
        ("threads", checkpoint.require("threads", int), torch.get_num_threads()),
        ("torch", checkpoint.versions["torch"], str(torch.__version__)),
        ("processor", checkpoint.meta.get("processor", processor()), processor()),
    ]
    if device.type == "cuda":
        gpu = torch.cuda.get_device_name(device)
        then_and_now.append(("GPU", checkpoint.meta.get("gpu", gpu), gpu))
    changes = [
        f"{what} {now} (was {shown(then)})" for what, then, now in then_and_now if then != now
    ]
    if not changes:
        return []
    far = "" if checkpoint.versions["charrnn"] == __version__ else ", or by more"
    return [f"{', '.join(changes)}: results may differ in the last bits{far}"]
