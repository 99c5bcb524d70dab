"""``charrnn evaluate``: scores of a text under trained models."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from charrnn.command_words import command_line
from charrnn.commands import options
from charrnn.commands.reporting import (
    check_report,
    origin_of_page,
    refuse_overwriting,
    show_and_report,
)
from charrnn.commands.stdio import say, say_where, spooled
from charrnn.commands.stopping import compiling
from charrnn.config import EvaluateConfig, TextSource
from charrnn.disk import followed, opened
from charrnn.errors import CorpusError, UsageError
from charrnn.layout import BESIDE
from charrnn.wording import shown

#: title -> flags: how the help groups the options.
GROUPS = {
    "Text": "--text --part --encoding",
    "Scores": "--baselines --dynamic --by-position --after --exact",
    "Device and output": "--device --show --report --per-char --json",
}


def evaluate(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT",
            parser=options.checkpoint,
            help="Checkpoints or runs' folders; a pattern such as checkpoints/poems-*, unquoted, "
            "works too, and skips anything else it matches.",
        ),
    ],
    text: options.Texts = None,
    part: options.Part = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="Encoding of the text, for models of characters (default: the training's)."
        ),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="Also score the text without a network: by uniform, unigram and n-gram, and by "
            "gzip, bzip2 and xz.",
        ),
    ] = False,
    dynamic: Annotated[
        bool,
        typer.Option(
            "--dynamic",
            help="Also score by dynamic evaluation: a copy of the model goes on learning.",
        ),
    ] = False,
    by_position: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Also give the loss by position: after 1 to N characters read since the state "
            "was reset.",
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            parser=options.typed,
            help="Also give the mean loss of the characters that follow this text.",
        ),
    ] = None,
    per_char: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the negative log-likelihood of each character, in nats, to this file: a "
            "line of JSON each.",
        ),
    ] = None,
    show: Annotated[
        bool,
        typer.Option(
            "--show", help="Print the text, coloured by each character's negative log-likelihood."
        ),
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Score in one lane from start to end and in fp32: slower, and within 0.001 nats "
            "of the default unless the text is quite unlike the one trained on.",
        ),
    ] = False,
    report: options.Report = None,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Score a text under one model or several.

    Name a text with --text, or take a part of the run's own with --part. If that text has moved,
    give both: --text says where it is now.

    It prints nats and bits per character, bits per byte and perplexity, over every character but
    the first; the mean of runs that differ in their seed only; and how far the best is ahead of
    the others. A character that a model does not know is charged in full: the unknown symbol's
    price plus that of spelling the character out. --after, --per-char and --show score as --exact
    does, or as --dynamic where that is given.
    """
    if not text and part is None and (meant := _meant_as_text(checkpoints)) is not None:
        named = command_line(["--text", meant])
        raise UsageError(f"give a text: {named}, or --part valid for what was held out")
    source = TextSource(texts=tuple(text or ()), part=part, encoding=encoding)
    config = EvaluateConfig(exact=exact, dynamic=dynamic, by_position=by_position, after=after)
    if (per_char or show) and len(checkpoints) > 1:
        raise UsageError("--per-char and --show take one checkpoint only")
    if per_char == Path("-"):
        raise UsageError("--per-char writes a file: give its name")
    if show and as_json:
        raise UsageError("--show and --json cannot be used together: both print on stdout")
    if report is not None:
        check_report(report)
        if per_char is not None and followed(per_char) == followed(report):
            raise UsageError(
                f"--report and --per-char both write {shown(report)}: give another file"
            )

    from charrnn.compute.compiler import SCORING

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(compiling(SCORING, device, with_samples=report is not None))

        with stop.loading():
            from charrnn.commands.watching import watch_scoring
            from charrnn.compute.device import choose_device
            from charrnn.inference.assessment import refuse_non_finite
            from charrnn.inference.ranking import to_list
            from charrnn.runs.subject import fact_lines, load_subjects
            from charrnn.views.score_view import print_assessments
            from charrnn.views.terminal import to_json

        where = choose_device(device)
        subjects = load_subjects(
            checkpoints, source, where, with_training=baselines, tell=say,
            spool=lambda: stack.enter_context(spooled(source.texts, stop)),
        )  # fmt: skip
        for subject in subjects:
            if subject.part.characters < 2:
                name = shown(source if text else subject.path)
                raise CorpusError(f"{name}: a text to score needs at least 2 characters")
        for flag, path in {"--report": report, "--per-char": per_char}.items():
            if path is not None:
                sources = {file: what for one in subjects for file, what in one.sources().items()}
                # Each name once: a folder of many files takes long to look through.
                read = dict.fromkeys([*source.texts, *(n for one in subjects for n in one.texts)])
                refuse_overwriting(flag, path, sources, [*read])
        facts = [subject.facts(of_training=part == "train") for subject in subjects]
        origins = [subject.origin(source) if as_json else {} for subject in subjects]
        for line in fact_lines([shown(subject.path) for subject in subjects], facts):
            say(line)
        say_where("scoring", where)
        assessments, failure = watch_scoring(
            zip(subjects, facts, strict=True), config, stop, baselines=baselines, show=show,
            per_char=per_char, with_page=report is not None,
        )  # fmt: skip

        def show_scores() -> None:
            if as_json:
                of = zip(to_list(assessments), origins, strict=True)
                print(to_json([row | origin for row, origin in of], indent=2))
            else:
                print_assessments(assessments)

        def page() -> str:
            from charrnn.views.portrait import portray_subjects
            from charrnn.views.report import assessment_page

            portraits = portray_subjects(subjects)
            text = subjects[0].called(source)
            return assessment_page(assessments, portraits, text, origin_of_page(where))

        try:
            show_and_report(show_scores, report, page, failure)
        except BrokenPipeError:
            refuse_non_finite(assessments)
            raise
        refuse_non_finite(assessments)  # only now, as other models may have finite scores to show


def _meant_as_text(checkpoints: Sequence[Path]) -> Path | None:
    """Return the last of several checkpoints if it is none, but may be the text to score."""
    *others, last = checkpoints
    if others and last.name not in BESIDE:
        with contextlib.suppress(OSError, ValueError), opened(last) as file:
            # A checkpoint begins with its header's length, which ends in NULs.
            head = file.read(8)
            return last if head and b"\0" not in head else None
    return None
