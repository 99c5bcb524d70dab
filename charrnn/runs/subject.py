"""A trained model, the text that it is measured on, and what it has seen of that text.

``evaluate`` and ``inspect`` both take checkpoints and one text, which is either named or a
part of the text that the models were trained on. All models are loaded before any text is
scored, so that problems are reported at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from charrnn.config import BY_PLAN, PartName, TextSource
from charrnn.disk import followed
from charrnn.errors import CheckpointError, CorpusError, UsageError
from charrnn.inference.assessment import OfRun
from charrnn.layout import BESIDE, BEST, LAST, PLAN, step_of_generation
from charrnn.network.model import CharModel
from charrnn.runs.run import Progress, RunSummary
from charrnn.runs.status import summary_of
from charrnn.storage.checkpoint import Checkpoint, NoCheckpointError, read_description
from charrnn.storage.reading import (
    Scan,
    TextRecord,
    learnt_before,
    most_learnt,
    readable,
    recorded_part,
    refuse_other_symbols,
)
from charrnn.storage.runfolder import files_of_run
from charrnn.storage.trained import load_model
from charrnn.text.corpus import Corpus, Part
from charrnn.text.files import EMBEDDED
from charrnn.text.not_text import Nameable
from charrnn.text.scanning import scan
from charrnn.text.vocabulary import Vocabulary, listed
from charrnn.wording import counted, shown


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained model and the text that it is measured on."""

    path: Path
    """As the user named it: a checkpoint or a run's folder."""
    model: CharModel
    vocabulary: Vocabulary
    checkpoint: Checkpoint
    """Without its tensors."""
    trained_on: TextRecord
    """The text of the model's run."""
    part: Part
    training: Part | None = None
    """The training part; None: it was not asked for, or is gone."""
    gone: str | None = None
    """What is missing, and why, if the training part was asked for and is gone."""

    @property
    def file(self) -> Path:
        """The file that it was loaded from."""
        assert self.checkpoint.file is not None
        return self.checkpoint.file

    def learnt(self, part: Part) -> str | None:
        """Say how much of a text the model, or the one it started from, was trained on, if any.

        Raises:
            CheckpointError: what the checkpoint records of earlier texts is not usable.
        """
        trained = self.trained_on
        learnt = _share(part, most_learnt(part, [trained]))
        if learnt is None:
            before = _share(part, most_learnt(part, learnt_before(self.checkpoint)))
            return before and (
                f"began with weights that were trained on {before}: another text tells more"
            )
        kept = trained.valid and trained.valid_fingerprint != trained.fingerprint
        is_gone = "-" in (*trained.texts, *trained.valid_texts)
        return f"was trained on {learnt}: " + (
            "--part valid is what was held out"
            if kept and not is_gone
            else "another text tells more"
        )

    def chosen(self) -> str | None:
        """Say how much of the measured text was used to choose the model in its run, if any.

        Raises:
            CheckpointError: as in ``validated_on``.
        """
        trained, scored = self.trained_on, validated_on(self.checkpoint)
        progress = self.checkpoint.record("progress", Progress)
        # The best one under any name. The last was not chosen, nor one that was the last, even
        # if it is the best.
        name = self.file.name
        is_last = name == LAST or step_of_generation(name) is not None
        if scored is None or is_last or progress.step != progress.best_step:
            return None
        validated = _share(self.part, trained.shared(self.part, *scored))
        if validated is None:
            return None
        return f"was chosen by its loss on {validated}, which flatters it: " + (
            "--part test tells more" if trained.test else "another text tells more"
        )

    def unknown(self, part: Part) -> str | None:
        """Say which characters of a text the model does not know, if any.

        The first character is left out: nothing predicts it, so it has no price.

        Raises:
            CorpusError: the text changed since it was scanned.
        """
        predicted = part.predicted
        unknown = self.vocabulary.unknown_among(predicted.counts)
        if not unknown:
            return None
        return (
            f"does not know {sum(unknown.values()):,} of the "
            f"{counted(predicted.characters, 'character')} scored, and each is charged as the "
            f"unknown symbol and spelled out: {listed(unknown, self.vocabulary.characters)}"
        )

    def facts(self, *, of_training: bool) -> list[str]:
        """Return what a user must know to judge the model's scores: "was trained on ...".

        Args:
            of_training: whether the text is the training part because the user asked for it.

        Raises:
            CheckpointError: as in ``validated_on``.
            CorpusError: the text changed since it was scanned.
        """
        learnt = None if of_training else self.learnt(self.part)
        facts = (learnt or self.chosen(), self.unknown(self.part), self.gone)
        return [fact for fact in facts if fact is not None]

    def called(self, source: TextSource) -> str:
        """Return what a page calls the text that ``source`` stands for with this model."""
        if source.part is None:
            return str(source)
        trained = self.trained_on
        names = source.texts or (source.part == "valid" and trained.valid_texts) or trained.texts
        of = EMBEDDED
        if names:
            of = str(TextSource(texts=tuple(Path(name).name or name for name in names)))
        return f"the {source.part} part of {of}"

    def origin(self, source: TextSource) -> dict[str, Any]:
        """Return the JSON fields that say which model and which text a result belongs to.

        Args:
            source: the text, as the user named it.

        Raises:
            CheckpointError: what the checkpoint records of its progress is not usable.
        """
        return {
            "file": str(self.file),
            "trained_steps": self.checkpoint.record("progress", Progress).step,
            "versions": self.checkpoint.versions,
            "texts": source.texts,
            "part": source.part,
            "encoding": self.part.corpus.encoding,
            "fingerprint": self.part.corpus.fingerprint,
        }

    def of_run(self) -> OfRun | None:
        """Return what tells its run from others; None: the checkpoint does not say."""
        name, own = self.file.name, self.checkpoint
        kept_at, newest = step_of_generation(name), own
        if name in (BEST, LAST) or kept_at is not None:  # in its run's folder, by all appearances
            with suppress(CheckpointError):  # the budget may have been raised since it was saved
                newest = read_description(own.folder / LAST)
        try:
            step = own.record("progress", Progress).step
            run, saved = (summary_of(one, self.model, self.vocabulary) for one in (newest, own))
        except CheckpointError:
            return None
        # The best by validation, the last, or one kept after so many steps.
        # If the run was resumed from before a change, the best may come from what came of that.
        of = run if run.changes[: len(saved.changes)] == saved.changes else saved
        setting = _setting(of, own.is_state and kept_at is None, kept_at)
        is_unfinished = not run.is_finished and (own.is_state or newest is not own)
        return OfRun(run.config.seed, setting, step, is_unfinished)

    @property
    def texts(self) -> tuple[str, ...]:
        """The names of the texts that its run reads."""
        return (*self.trained_on.texts, *self.trained_on.valid_texts)

    def sources(self) -> dict[Path, str]:
        """Return the files that no result may overwrite, each with a description."""
        parts = [part for part in (self.part, self.training) if part is not None]
        read = [file.path for part in parts for file in part.corpus.files]
        run = files_of_run(self.file)
        # If the run is part of a comparison.
        plan = followed(self.checkpoint.folder).parent / PLAN
        return (
            dict.fromkeys(read, "what is read")
            | dict.fromkeys(run, "a file of the run")
            | {plan: "the comparison's plan"}
        )


def _setting(run: RunSummary, *which: int | None) -> str:
    """Return a fingerprint of what a run was given, but for the seed and where the text was.

    What follows from the plan is left out, as it may differ from seed to seed: a plan in minutes
    depends on the speed.

    Args:
        run: as the newest checkpoint has it.
        which: what tells apart the models that it saved.
    """
    values, text = run.shape.to_dict() | run.config.to_dict(), run.text
    for field, by_plan in BY_PLAN.items():
        if values[by_plan]:
            del values[field]
    del values["seed"], values["warmup_steps"]  # a plan of few updates shortens the warm-up
    if values["init_sha256"] is not None:  # older versions recorded its name alone
        del values["init_from"]
    read = [text.fingerprint, text.valid_fingerprint, text.encoding]
    given = [values, *read, text.train, text.valid, text.test, *which]
    # Another budget, given when the run had come so far: the rate rises again there.
    if run.config.minutes is None and (since := run.progress.planned_at_step):
        given.append(since)
    for change in run.changes:
        given.append(f"{change.was}, then {change.now}")
        if run.config.minutes is None:  # in minutes seeds make different numbers of updates
            given.append(change.step)
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:16]


def validated_on(checkpoint: Checkpoint) -> tuple[str, tuple[int, int]] | None:
    """Return what a checkpoint's run validates on; None: nothing is held out.

    Returns:
        The text's fingerprint, and borders in it: the first character, and the one after the last.

    Raises:
        CheckpointError: what the checkpoint records of its text or progress is not usable.
    """
    text = checkpoint.record("text", TextRecord)
    scored = checkpoint.record("progress", Progress).validate_characters
    if text.valid is None:
        return None
    start, stop = text.valid
    stop = stop if scored is None else min(stop, start + scored)
    return text.valid_fingerprint or text.fingerprint, (start, stop)


def load_subjects(
    paths: Sequence[Path],
    source: TextSource,
    device: torch.device,
    *,
    spool: Callable[[], Path | None] = lambda: None,
    with_training: bool = False,
    tell: Callable[[str], None],
) -> list[Subject]:
    """Load checkpoints, and read the text that each is measured on.

    Args:
        paths: checkpoints or runs' folders; other files beside one of them are left out.
        source: the text.
        device: where to compute.
        spool: saves standard input in a file, if the source names it; called once all
            checkpoints are loaded, so that nobody types a text for a missing one.
        with_training: also read the training parts, where they still exist.
        tell: called with what a user should know about the text, and with what is left out.

    Raises:
        CheckpointError: a file is not a whole checkpoint.
        CorpusError: a text cannot be read, is gone or has changed.
        UsageError: the models' parts, or the files that they can read, are different texts, so
            that scores would rank the texts; or the encoding does not fit a model.
    """
    models = _load_models(paths, device, source.texts, tell)
    spooled = spool()
    corpora: dict[tuple[tuple[str, ...], str], Corpus] = {}

    def scan_once(nameable: Nameable, texts: tuple[str, ...], encoding: str) -> Corpus:
        # Once for all models that read a text alike, named or recorded.
        if (texts, encoding) not in corpora:
            corpora[texts, encoding] = scan(texts, encoding, nameable)
        return corpora[texts, encoding]

    scan_named: Scan = partial(scan_once, "characters")
    scan_recorded: Scan = partial(scan_once, "none")  # a run has read it before
    texts = tuple(readable(source.texts, spooled))
    all_of_bytes = all(vocabulary.is_bytes for _, _, vocabulary, _ in models)
    subjects: list[Subject] = []
    parts: dict[tuple[int, int, int], Part] = {}
    for path, model, vocabulary, checkpoint in models:
        trained_on = checkpoint.record("text", TextRecord)
        if source.part is not None:
            part = _recorded(checkpoint, source.part, scan_recorded, texts)
        else:
            read_as = trained_on.encoding
            # An encoding applies to the models of characters, if there are any.
            if source.encoding is not None and (all_of_bytes or not vocabulary.is_bytes):
                refuse_other_symbols(source.encoding, vocabulary, shown(path))
                read_as = source.encoding
            part = scan_named(texts, read_as).whole
        # The same object for all models, so that its characters are counted once.
        part = parts.setdefault((id(part.corpus), part.start, part.stop), part)
        subjects.append(Subject(path, model, vocabulary, checkpoint, trained_on, part))
    for note in dict.fromkeys(note for one in subjects for note in one.part.corpus.notes):
        tell(note.replace(str(spooled), "standard input") if spooled else note)
    if source.part is None:
        _refuse_different_files(subjects)
    else:
        _refuse_different_parts(subjects, source.part)
    if not with_training:
        return subjects
    return [_with_training(subject, scan_recorded, texts, source.part) for subject in subjects]


def _load_models(
    paths: Sequence[Path],
    device: torch.device,
    texts: Sequence[str],
    tell: Callable[[str], None],
) -> list[tuple[Path, CharModel, Vocabulary, Checkpoint]]:
    """Load checkpoints, leaving out other files that a pattern for runs finds beside them.

    If texts were named, a pattern meant for texts may have put them among the checkpoints.
    """
    models = []
    foreign: dict[Path, NoCheckpointError] = {}
    for path in paths:
        try:
            models.append((path, *load_model(path, device)))
        except NoCheckpointError as error:
            foreign[path] = error
        except CheckpointError as error:
            if not models or not texts:
                raise
            raise _of_a_pattern(error) from error
    beside_runs = {path.parent for path, *_ in models}
    beside_texts = {Path(name).parent for name in texts if name != "-"}
    for path, flawed in foreign.items():
        if path.parent not in beside_runs - beside_texts:
            raise _of_a_pattern(flawed) if models and texts else flawed
    for path, flawed in foreign.items():
        if path.name not in BESIDE:  # a pattern such as checkpoints/compare/* always finds these
            tell(f"{shown(path)}: {flawed.flaw}: left out")
    return models


def _of_a_pattern(error: CheckpointError) -> CheckpointError:
    """Return an error with a hint at an unquoted pattern after --text as its possible cause."""
    hint = "if a pattern after --text gave this name, put the pattern in quotes"
    return CheckpointError(f"{error}; {hint}")


def _refuse_different_parts(subjects: Sequence[Subject], name: PartName) -> None:
    first, *others = subjects
    for other in others:
        if not other.part.is_same_as(first.part):
            raise UsageError(
                f"the {name} part of {shown(other.path)} is not that of {shown(first.path)}: "
                "score them one by one, or on the same text with --text FILE"
            )


def _refuse_different_files(subjects: Sequence[Subject]) -> None:
    """Refuse a folder in which models with different encodings find different files of text."""
    first, *others = subjects
    read, *reads = [{file.path for file in one.part.corpus.files} for one in subjects]
    for other, has in zip(others, reads, strict=True):
        if lacking := sorted(read ^ has):
            who, not_who = (first, other) if lacking[0] in read else (other, first)
            raise UsageError(
                f"{shown(lacking[0])} is text for {shown(who.path)} but not for "
                f"{shown(not_who.path)}, which reads another encoding: score them one by one, or "
                "name files that both can read"
            )


def _with_training(
    subject: Subject, read: Scan, texts: Sequence[str], part: PartName | None
) -> Subject:
    # Named texts say where the run's text is now, unless they are another text or the one that is
    # validated on.
    is_another = part is None or (part == "valid" and subject.trained_on.valid_texts)
    moved = () if is_another else texts
    try:
        return replace(subject, training=recorded_part(subject.checkpoint, "train", read, moved))
    except (CorpusError, CheckpointError) as error:
        why = str(error).removeprefix(f"{shown(subject.path)}: ")
        missing = "has no unigram and n-gram beside it, which learn from its training part"
        return replace(subject, gone=f"{missing}: {why}")


def fact_lines(models: Sequence[str], facts: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield what a user must know to judge the scores of models, one line per fact.

    Args:
        models: their names.
        facts: those of each.
    """
    whose: dict[str, list[str]] = {}
    for model, its_facts in zip(models, facts, strict=True):
        for fact in its_facts:
            whose.setdefault(fact, []).append(model)
    for fact, names in whose.items():
        yield f"{', '.join(names)}: {'the' if len(names) == 1 else 'each'} model {fact}"


def _recorded(checkpoint: Checkpoint, part: PartName, read: Scan, moved: Sequence[str]) -> Part:
    try:
        return recorded_part(checkpoint, part, read, moved)
    except UsageError as error:
        raise UsageError(f"{error}; --text FILE alone reads another text") from error
    except CorpusError as error:
        if moved:
            raise
        raise CorpusError(
            f"{error}; --text FILE says where it is now; without --part it names another text"
        ) from error


def _share(part: Part, shared: int | None) -> str | None:
    """Say how much of a part is shared; return None if nothing is.

    If ``shared`` is None, it is unknown how much, but some is.
    """
    if shared is None:
        return "some of this text"
    if shared == part.characters:
        return "these very characters"
    return f"{shared:,} of these {part.characters:,} characters" if shared else None
