"""The command line: parse, call, show.

torch is imported inside the commands, so that help and messages about wrong
options appear at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from typer.core import TyperCommand

from charrnn import __version__, recipe
from charrnn.config import (
    BUDGETS,
    MEASUREMENTS,
    CellName,
    DeviceName,
    EvaluateConfig,
    InspectConfig,
    MatchName,
    ModelConfig,
    OptimiserName,
    PartName,
    PrecisionName,
    SampleConfig,
    TextChoices,
    TextSource,
    TrainConfig,
    UnknownName,
    WeightsName,
)
from charrnn.disk import followed
from charrnn.errors import CharrnnError, CorpusError, RunFolderError, UsageError
from charrnn.files import LOG, PLAN, absolute_names, name_of
from charrnn.limits import keep_freed_memory, openmp
from charrnn.outcome import outcome
from charrnn.reporting import (
    check_report,
    origin_of_page,
    refuse_output_in_text,
    refuse_overwriting,
    refuse_report_in_text,
    show_and_report,
)
from charrnn.stdio import lossy, print_path, read_prompt, say, spooled, waits_unread
from charrnn.stopping import Stopped, StopSignals
from charrnn.wording import command_line, counted, duration, flag, joined, reason, shown

if TYPE_CHECKING:
    import torch

    from charrnn.comparison import Plan
    from charrnn.run import Run
    from charrnn.runfolder import RunFolder

app = typer.Typer(
    name="charrnn",
    help="""Train a character RNN, LSTM or GRU on any text; sample from it, score text with it.

    \b
    charrnn train poems.txt --minutes 5
    charrnn sample checkpoints/poems-lstm
    """,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: Regularisation options, which ``train`` and ``compare`` share.
AGAINST_LEARNING_BY_HEART = (
    "--dropout --weight-drop --weight-decay --loss-temperature --dropout-masks"
)


def _grouped(groups: dict[str, str]) -> type[TyperCommand]:
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
                    arguments.append((name, said))
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


def _given(context: typer.Context, kind: type, but: Collection[str]) -> dict[str, Any]:
    """Return the options that the user gave and that are fields of a dataclass.

    An option therefore has its field's name. A flag that is not given is left out.

    Args:
        context: the command's.
        kind: the dataclass.
        but: fields that are not taken directly from options.
    """
    names = [field.name for field in fields(kind) if field.name not in but]
    typed = recipe.given({name: context.params.get(name) for name in names})
    return {name: value for name, value in typed.items() if value is not False}


def _refuse_both(valid: Sequence[str] | None, valid_share: float | None) -> None:
    """Refuse --valid together with --valid-share."""
    if valid and valid_share is not None:
        raise UsageError("--valid and --valid-share cannot be used together: give one")


def _refuse_begun(shares: dict[str, float | None], init_from: Path | None) -> None:
    """Refuse to divide a resumed run's text again, or to start the run from other weights."""
    said = []
    if given := recipe.given(shares):
        names, them = joined([*map(flag, given)], "and"), "them" if len(given) > 1 else "it"
        said.append(f"{names}: the run's text is divided already: leave {them} out")
    if init_from is not None:
        said.append("--init-from: the run has weights of its own already: leave it out")
    if said:
        raise UsageError("; ".join(said))


def _typed(word: str) -> str:
    """Return an argument as it was typed: as utf-8 even if the locale is ASCII."""
    if not any("\udc80" <= character <= "\udcff" for character in word):
        return word
    return os.fsencode(word).decode("utf-8", "surrogateescape")


def _run_folder(name: str) -> Path:
    """Refuse an empty name, which as a path would be the current folder."""
    if not name:
        raise UsageError("--run is empty: name a folder, or . for the current one")
    return Path(name)


def _checkpoint(name: str) -> Path:
    """Refuse an empty name, which as a path would be the current folder."""
    if not name:
        raise UsageError("CHECKPOINT is empty: name one, or a run's folder, . for the current one")
    return Path(name)


Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", parser=_checkpoint, help="A checkpoint, or a run's folder."
    ),
]


def main() -> None:
    """Run the command line; every failure is one line on stderr and an exit code."""
    os.environ.update(openmp(os.environ))
    keep_freed_memory()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Closed by the caller. /dev/null reads as empty and drops what is written, and no file
            # that is opened later takes its number.
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, mode, closefd=False))
    sys.stderr = lossy(sys.stderr)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as ``__main__`` has left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    return outcome(app, arguments)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"charrnn {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and leave.",
            callback=_show_version,
            is_eager=True,  # before a missing command is reported
        ),
    ] = False,
) -> None:
    """Take the options before a command, and check that the current folder exists."""
    try:
        Path.cwd()
    except OSError as error:  # neither torch's libraries nor relative paths would be found
        raise CharrnnError(
            f"the current folder cannot be found: {reason(error)}: change to one that exists"
        ) from error


@app.command(
    cls=_grouped(
        {
            "Model": "--cell --hidden --layers --embedding",
            "Budget": "--minutes --epochs --steps",
            "Run": "--run --resume --init-from --seed",
            "Text": "--valid --valid-share --test-share --encoding --min-count",
            "Update": "--batch-size --bptt --loss-last --reset-state --optimiser --lr --clip-norm "
            "--clip-value --scale-norm",
            "Against learning by heart": AGAINST_LEARNING_BY_HEART,
            "Validation and saving": "--validate-every --patience --keep",
            "Device and output": "--device --precision --json --quiet",
        }
    )
)
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
    epochs: Epochs = None,
    steps: Steps = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=_run_folder,
            help="The run's folder (default: checkpoints/TEXT-CELL).",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --run, exactly as it was, on its device.",
        ),
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            parser=_checkpoint,
            help="Start from this checkpoint's weights and vocabulary.",
        ),
    ] = None,
    valid: Valid = None,
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
    min_count: MinCount = None,
    layers: Layers = None,
    hidden: Annotated[
        int | None, typer.Option(help="Units of each layer (default: by rule).")
    ] = None,
    embedding: Embedding = None,
    dropout: Dropout = None,
    weight_drop: WeightDrop = None,
    dropout_masks: DropoutMasks = None,
    loss_temperature: LossTemperature = None,
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
    optimiser: Optimiser = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate: Muon's, and AdamW's moves with it; with adamw or sgd, that "
            "of all weights (default: by rule; adamw 0.005, sgd 1)."
        ),
    ] = None,
    weight_decay: WeightDecay = None,
    clip_norm: ClipNorm = None,
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
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print only notes and the run's folder.")
    ] = False,
) -> int:
    """Train a model on a text.

    The last tenth of the text is held out to validate. The run's folder gets the best and the last
    checkpoint and a log; its path is printed on stdout at the end. Ctrl-C saves and leaves.

    Whatever you do not give is chosen by rule, from the size of the text, the device and the
    budget. What is chosen is shown, most of it before the first step.
    """
    budget = recipe.given({"minutes": minutes, "epochs": epochs, "steps": steps})
    model = _given(context, ModelConfig, but=("cell",))
    training = _given(context, TrainConfig, but=(*BUDGETS, "init_from"))
    reading = _given(context, TextChoices, but=("texts", "valid"))
    if as_json and quiet:
        raise UsageError("--json and --quiet cannot be used together: give one")
    if keep is not None and keep < 0:
        raise UsageError(f"--keep must be 0 or more, not {keep}")
    if resume:
        _refuse_begun({"valid_share": valid_share, "test_share": test_share}, init_from)
        if run is None:
            such_as = _such_as(texts or (), cell or "lstm")
            raise UsageError(
                f"--resume needs --run DIR, the folder of the run to go on with{such_as}"
            )
    _refuse_both(valid, valid_share)
    text = TextChoices(texts=tuple(texts or ()), valid=tuple(valid or ()), **reading)
    choices = recipe.Choices(cell=cell, budget=budget, model=model, training=training)
    # Check every number before torch is imported and before anything is written; but --loss-last
    # cannot be compared yet with the window of a resumed run.
    known = {"loss_last": min(1, loss_last)} if resume and bptt is None and loss_last else {}
    recipe.refuse_nonsense(replace(choices, training=training | known))
    if not resume:
        refuse_output_in_text((*text.texts, *text.valid))

    command = command_line(["charrnn", *sys.argv[1:]])
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals())

        _import_numpy()
        from charrnn.comparison import refuse_comparison
        from charrnn.device import choose_device
        from charrnn.reading import refuse_text_within
        from charrnn.resuming import resume as resume_run
        from charrnn.runfolder import RunFolder
        from charrnn.starting import start as start_run
        from charrnn.watching import watch_run

        # A resumed run computes where it did before, unless --device says otherwise.
        where = None if resume and device == "auto" else choose_device(device)
        begin = RunFolder.open_existing if resume else RunFolder.create
        take = partial(begin, keep=1 if keep is None else keep, command=command)
        if run is None:
            folder = _take_free(take, text.texts, cell or _cell_of(init_from))
        else:
            refuse_comparison(run)
            if not resume:
                refuse_text_within(text, run, "a run")
            folder = take(run)
        stack.enter_context(folder)
        typed = stack.enter_context(spooled(text.texts, stop))
        if not resume:
            assert where is not None
            new = start_run(
                choices, text, folder=folder, device=where, init_from=init_from, spooled=typed
            )
            if not texts and waits_unread():
                new.notes.append("standard input is not read: give - as TEXT to train on it")
            return watch_run(new, stop, as_json=as_json, quiet=quiet)
        fixed: dict[str, Any] = recipe.given({"cell": cell, **model, **training, **reading})
        may_change = {name: fixed.pop(name) for name in ("lr", "patience") if name in fixed}
        old = resume_run(
            folder,
            device=where,
            changes=budget | may_change,
            fixed=fixed,
            texts=text.texts,
            valid_texts=text.valid,
            spooled=typed,
            keep=keep,
        )
        if old.is_finished:
            old.save_names()
        if old.is_finished and not as_json:
            if not quiet:
                _say_finished(old)
            print_path(folder.path)
            return 0
        return watch_run(old, stop, as_json=as_json, quiet=quiet)


@app.command(
    cls=_grouped(
        {
            "Text": "--prompt --echo --unknown --length --stop --count",
            "Drawing": "--temperature --top-k --top-p --seed",
            "Device and output": "--weights --device --json",
        }
    )
)
def sample(
    context: typer.Context,
    checkpoint: Checkpoint,
    prompt: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            parser=_typed,
            help="Text to continue (default: a line break); - reads standard input.",
        ),
    ] = "",
    length: Annotated[int, typer.Option(help="How many new characters; 0: without end.")] = 1000,
    temperature: Annotated[
        float,
        typer.Option(help="Below 1 safer, above 1 wilder; 0: always the likeliest character."),
    ] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(help="Draw only from the K likeliest characters.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw only from the likeliest characters that together reach probability P."
        ),
    ] = None,
    stop: Annotated[
        str | None, typer.Option(metavar="TEXT", parser=_typed, help="End after this text.")
    ] = None,
    count: Annotated[int, typer.Option(help="How many samples, made side by side.")] = 1,
    seed: Annotated[
        int,
        typer.Option(
            help="The same seed gives the same text on the same machine, with as many threads and "
            "the same --count and --weights."
        ),
    ] = 1,
    unknown: Annotated[
        UnknownName,
        typer.Option(help="What to do with characters of the prompt that the model does not know."),
    ] = "error",
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt first.")] = False,
    weights: Annotated[
        WeightsName,
        typer.Option(
            help="Precision of the weights on a CPU. bf16 and int8 change the text a little; they "
            "make long texts faster where there is a C compiler and the processor multiplies them."
        ),
    ] = "fp32",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Write text like the text that the model was trained on."""
    config = SampleConfig(**_given(context, SampleConfig, but=()))
    if as_json and length == 0:
        raise UsageError("--length 0 never ends: leave out --json")

    _import_numpy()
    from charrnn.compiler import find_compiler, why_none
    from charrnn.device import choose_device
    from charrnn.sample_view import collect, print_as_json, print_as_made, print_samples
    from charrnn.sampling import encode_stop, prepare_prompt, unwarned
    from charrnn.sampling import sample as draw
    from charrnn.steps import Steps
    from charrnn.trained import load_model

    where = choose_device(device)
    if config.weights != "fp32" and where.type != "cpu":
        raise UsageError(f"--weights {config.weights} is for a CPU: leave it out on {where.type}")
    model, vocabulary, _ = load_model(checkpoint, where)
    _say_where("sampling", where)
    ids, note = prepare_prompt(read_prompt(prompt, vocabulary), vocabulary, unknown)
    if note:
        say(note)
    if config.weights != "fp32" and not find_compiler():
        say(f"note: without a C compiler --weights {config.weights} is no faster")
    ending = encode_stop(vocabulary, config.stop)
    start = ids.tolist() if echo else []
    pieces = draw(model, vocabulary, ids, config)
    # StopSignals, so that a compiler that is running is ended, too.
    with StopSignals(), unwarned():
        if as_json:
            print_as_json(vocabulary, start, collect(count, pieces), seed, ending, where.type)
        elif count > 1:
            print_samples(vocabulary, start, collect(count, pieces))
        else:
            print_as_made(vocabulary, start, pieces)
    if config.weights != "fp32" and find_compiler() and (why := why_none(Steps, config.weights)):
        say(f"note: --weights {config.weights} was no faster here: {why}")


@app.command(
    cls=_grouped(
        {
            "Text": "--text --part --encoding",
            "Scores": "--baselines --dynamic --by-position --after --exact",
            "Device and output": "--device --show --report --per-char --json",
        }
    )
)
def evaluate(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT",
            parser=_checkpoint,
            help="Checkpoints or runs' folders; a pattern such as checkpoints/poems-*, unquoted, "
            "works too, and skips anything else it matches.",
        ),
    ],
    text: Texts = None,
    part: Part = None,
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
            parser=_typed,
            help="Also give the mean loss of the characters that follow this text.",
        ),
    ] = None,
    per_char: Annotated[
        Path | None,
        typer.Option(
            help="Write the negative log-likelihood of each character, in nats, to this file: a "
            "line of JSON each."
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
            help="Score in one lane from start to end: slower, and within 0.001 nats of the "
            "default unless the text is quite unlike the one trained on.",
        ),
    ] = False,
    report: Report = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score a text under one model or several.

    Name a text with --text, or take a part of the run's own with --part. If that text has moved,
    give both: --text says where it is now.

    It prints nats and bits per character, bits per byte and perplexity, over every character but
    the first. A character that a model does not know is charged in full: the unknown symbol's price
    plus that of spelling the character out. --after, --per-char and --show score as --exact does,
    or as --dynamic where that is given.
    """
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

    _import_numpy()
    from charrnn.assessment import refuse_non_finite
    from charrnn.device import choose_device
    from charrnn.score_view import print_assessments
    from charrnn.subject import load_subjects, remarks
    from charrnn.terminal import to_json
    from charrnn.watching import watch_scoring

    where = choose_device(device)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals())  # so that nothing is left behind
        subjects = load_subjects(
            checkpoints, source, where, with_training=baselines, tell=say,
            spool=lambda: stack.enter_context(spooled(source.texts, stop)),
        )  # fmt: skip
        for subject in subjects:
            if subject.part.characters < 2:
                name = shown(source if text else subject.path)
                raise CorpusError(f"{name}: a text to score needs at least 2 characters")
        for subject in subjects:
            sources, read = subject.sources(), (*source.texts, *subject.texts)
            refuse_overwriting("--report", report, sources, read)
            refuse_overwriting("--per-char", per_char, sources, read)
        facts = [subject.facts(of_training=part == "train") for subject in subjects]
        origins = [subject.origin(source) if as_json else {} for subject in subjects]
        for line in remarks(subjects, facts):
            say(line)
        _say_where("scoring", where)
        assessments, failure = watch_scoring(
            zip(subjects, facts, strict=True), config, stop, baselines=baselines, show=show,
            per_char=per_char, with_page=report is not None,
        )  # fmt: skip

        def show_scores() -> None:
            if as_json:
                of = zip(assessments, origins, strict=True)
                print(to_json([one.to_dict() | origin for one, origin in of], indent=2))
            else:
                print_assessments(assessments)

        def page() -> str:
            from charrnn.portrait import portray_subjects
            from charrnn.report import assessment_page

            portraits = portray_subjects(subjects)
            text = subjects[0].called(source)
            return assessment_page(assessments, portraits, text, origin_of_page(where))

        try:
            show_and_report(show_scores, report, page, failure)
        except BrokenPipeError:
            refuse_non_finite(assessments)
            raise
        refuse_non_finite(assessments)  # only now, as other models may have finite scores to show


@app.command(
    cls=_grouped(
        {
            "Models": "--cell --match --hidden --layers --embedding",
            "Budget": "--minutes --epochs --steps",
            "Runs": "--seeds --seed --run --resume",
            "Text": "--valid --valid-share --test-share --encoding --min-count",
            "Update": "--batch-size --bptt --optimiser --lr --clip-norm",
            "Against learning by heart": AGAINST_LEARNING_BY_HEART,
            "Device and output": "--device --precision --report --json --quiet",
        }
    )
)
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
    epochs: Epochs = None,
    steps: Steps = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            parser=_run_folder,
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
    report: Report = None,
    valid: Valid = None,
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
    min_count: MinCount = None,
    layers: Layers = None,
    hidden: Annotated[
        int | None,
        typer.Option(help="Units of the LSTM, which the others are matched to (default: by rule)."),
    ] = None,
    embedding: Embedding = None,
    dropout: Dropout = None,
    weight_drop: WeightDrop = None,
    dropout_masks: DropoutMasks = None,
    loss_temperature: LossTemperature = None,
    batch_size: Annotated[int | None, typer.Option(help="Lanes (default: the LSTM's).")] = None,
    bptt: Annotated[
        int | None, typer.Option(help="Window of the gradient (default: the LSTM's).")
    ] = None,
    optimiser: Optimiser = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate: Muon's, and AdamW's moves with it, by each cell's ratio; "
            "with adamw or sgd, that of all weights (default: by rule; adamw 0.005, sgd 1)."
        ),
    ] = None,
    weight_decay: WeightDecay = None,
    clip_norm: ClipNorm = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the first run (default 1); the others count up from it."),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only notes and the table.")] = False,
) -> int:
    """Train several cells on the same text and tell which is ahead.

    All read the same text in the same order, with the same layers and lanes, and have the same
    number of parameters (--match hidden: the same width). With --minutes a faster cell reads more.
    Learning rates, weight decay, dropout and its masks, weight drop and loss temperature are each
    cell's own unless you give them. Ctrl-C saves and leaves. A run whose loss is no longer finite
    is left out, and --resume tries it again.

    The page of --report is made when all runs are done. For a comparison that is finished already,
    --resume makes it without training anything.
    """
    from charrnn.comparison import Plan, name_moved, read_results, resume_words, take_up

    given = _given(context, Plan, but=("texts", "valid", "device"))
    if cell:
        given["cells"] = tuple(cell)
    if resume and run is None:
        such_as = _such_as(texts or (), "compare")
        raise UsageError(
            f"--resume needs --run DIR, the folder of the comparison to go on with{such_as}"
        )
    if resume and given.keys() - {"seeds"}:
        raise UsageError(
            "--resume goes on with the comparison as it was planned: give only --run DIR, "
            "--seeds to add runs, and TEXT or --valid if a text has moved"
        )
    _refuse_both(valid, valid_share)
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
        folder = run or _default_run(texts or (), "compare")

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals())

        _import_numpy()
        import torch

        from charrnn.device import choose_device
        from charrnn.score_view import print_comparison
        from charrnn.terminal import to_json
        from charrnn.watching import watch_comparison

        if device != "auto" or plan.device is None:
            where = choose_device(device)
        elif all(read_results(folder, plan)):  # nothing is left to train: any machine will do
            where = torch.device(plan.device)
        else:
            where = _device_of(plan.device)
        if not resume:
            plan = replace(plan, device=cast("DeviceName", where.type))
            if not texts and waits_unread():
                say("note: standard input is not read: give the text as a file")
        if report is not None:
            refuse_report_in_text(report, plan, folder)
        words = resume_words(folder) + changed
        words += ["--report", report] if report is not None else []
        words += ["--device", device] if device != "auto" else []
        command = command_line(words)
        go_on = f"go on with: {command}"
        if plan.minutes is not None and not resume and not quiet:
            runs = plan.seeds * len(plan.cells)
            say(
                f"{counted(runs, 'run')} of {counted(plan.minutes, 'minute')}: "
                f"{duration(60 * plan.minutes * runs)}, and what scoring takes"
            )
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
            from charrnn.portrait import portray_comparison
            from charrnn.report import comparison_page

            stop.leave_at_once()
            if not quiet:
                say("inspecting a run of each cell, for the report ...")
            try:
                portraits, runs = portray_comparison(comparison)
            except CorpusError as error:
                raise CorpusError(f"{error}{name_moved(plan, command)}") from error
            folders = [Path(result.run) for result, _ in runs]
            return comparison_page(comparison, portraits, runs, origin_of_page(where, folders))

        try:
            show_and_report(show, report, page)
        except Stopped:
            say(f"all runs are done, but there is no report yet; {go_on}")
            raise
        except BrokenPipeError:
            if not comparison.failures:
                raise
    return 1 if comparison.failures else 0


@app.command(
    name="inspect",
    short_help="Say what a run is; measure gradient flow, memory, gates and units.",
    cls=_grouped(
        {
            "Text": "--text --part --encoding --characters",
            "Measurements": "--only --unit --spectral-radius --bptt --loss-last --seed",
            "Device and output": "--device --report --json",
        }
    ),
)
def inspect_recurrence(
    checkpoint: Checkpoint,
    text: Texts = None,
    part: Part = None,
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
            help="Also show the gradient flow with the recurrent matrices scaled to this spectral "
            "radius; may be given several times."
        ),
    ] = None,
    bptt: Annotated[
        list[int] | None,
        typer.Option(
            help="Compare the gradient by windows of this length with the full one (default: "
            "powers of 2); may be given several times."
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
    report: Report = None,
    device: Device = "cpu",
    as_json: AsJson = False,
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
    clipping    the training's gradient norms
    truncation  the gradient by windows against the full one

    Name a text with --text, or take a part of the run's own with --part. If that text has moved,
    give both: --text says where it is now.
    """  # noqa: D301 - click's mark of lines that stay as they are
    if text is None and part is None:
        measuring = {
            "encoding": encoding,
            "characters": characters,
            "only": only,
            "unit": unit,
            "spectral_radius": spectral_radius,
            "bptt": bptt,
            "loss_last": loss_last,
            "seed": seed,
            "report": report,
            "device": None if device == "cpu" else device,
        }
        if names := [*map(flag, recipe.given(measuring))]:
            need = "needs" if len(names) == 1 else "need"
            raise UsageError(
                f"{joined(names, 'and')} {need} a text: give --text FILE, or --part valid for what "
                "was held out"
            )
        _print_status(checkpoint, as_json)
        return
    source = TextSource(texts=tuple(text or ()), part=part, encoding=encoding)
    config = InspectConfig(
        only=tuple(only or ()),
        seed=seed,
        spectral_radius=tuple(spectral_radius or ()),
        bptt=tuple(bptt or ()),
        loss_last=loss_last,
        **recipe.given({"characters": characters}),
    )
    if report is not None:
        check_report(report)

    _import_numpy()
    from charrnn.activity import Unit
    from charrnn.device import choose_device
    from charrnn.inspection_view import print_inspection
    from charrnn.subject import load_subjects
    from charrnn.terminal import to_json
    from charrnn.trained import shape_of
    from charrnn.watching import watch_inspection

    where = choose_device(device)
    # A unit that the model lacks is refused before a long text is read.
    watched = None if unit is None else Unit.parse(unit, shape_of(checkpoint))
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals())  # so that nothing is left behind
        (subject,) = load_subjects(
            [checkpoint], source, where, tell=say,
            spool=lambda: stack.enter_context(spooled(source.texts, stop)),
        )  # fmt: skip
        read = (*source.texts, *subject.texts)
        refuse_overwriting("--report", report, subject.sources(), read)
        origin = {"device": where.type} | subject.origin(source) if as_json else {}
        _say_where("inspecting", where)
        seen, stretch, inspection = watch_inspection(
            subject, config, unit=watched, is_named=part is None
        )

        def show() -> None:
            if as_json:
                print(to_json(inspection.to_dict(str(checkpoint), subject.model) | origin))
            else:
                print_inspection(inspection)

        def page() -> str:
            from charrnn.portrait import portray_inspected
            from charrnn.report import inspection_page

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
    _import_numpy()
    from charrnn.run_words import LABEL, status_lines
    from charrnn.status import read_status
    from charrnn.terminal import print_words, to_json

    status = read_status(checkpoint)
    if as_json:
        print(to_json(status.to_dict()))
        return
    for line in status_lines(status):
        print_words(line, LABEL)


def _import_numpy() -> None:
    """Import numpy before torch does.

    Torch swallows whatever is raised while it imports numpy, a signal's exception as well, and goes
    on with half of it.
    """
    import numpy  # noqa: F401


def _say_where(doing: str, device: torch.device) -> None:
    """Say on which device something is done, unless it is the CPU, as usual."""
    from charrnn.device import in_words

    if device.type != "cpu":
        say(f"{doing} on {in_words(device)}")


def _cell_of(init_from: Path | None) -> CellName:
    """Return the default cell: that of the checkpoint a run starts from, if there is one."""
    if init_from is None:
        return "lstm"

    from charrnn.trained import shape_of

    return shape_of(init_from).cell


def _default_run(texts: Sequence[str], what: str) -> Path:
    """Return a folder under checkpoints/ that no run has taken yet."""
    base = _first_run(texts, what)
    path, number = base, 1
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def _take_free(take: Callable[[Path], RunFolder], texts: Sequence[str], what: str) -> RunFolder:
    """Hold a folder under checkpoints/ that no run has taken yet.

    Raises:
        RunFolderError: it cannot be made.
    """
    path = _default_run(texts, what)
    while True:
        try:
            return take(path)
        except RunFolderError:
            # A command that was started at the same time may have been faster.
            if path == (path := _default_run(texts, what)):
                raise


def _first_run(texts: Sequence[str], what: str) -> Path:
    """Return the folder under checkpoints/ of the first run on a text."""
    return Path("checkpoints") / f"{name_of(texts) if texts else 'python'}-{what}"


def _such_as(texts: Sequence[str], what: str) -> str:
    """Return a hint at the folder that is meant, if it exists: the only text, or the default."""
    mark = PLAN if what == "compare" else LOG
    is_given = len(texts) == 1 and os.path.exists(f"{texts[0]}/{mark}")  # noqa: PTH110
    path = Path(texts[0]) if is_given else _first_run(texts, what)
    is_there = os.path.isdir(path)  # noqa: PTH112 - which never raises
    return f", such as {command_line(['--run', path])}" if is_there else ""


def _say_finished(run: Run) -> None:
    """Say that a run has nothing left to do, and what would make it go on."""
    larger = "--patience" if run.is_out_of_patience else "--minutes, --epochs or --steps"
    progress = run.progress
    say(
        f"{shown(run.folder.path)}: finished already, after {progress.step:,} steps and "
        f"{duration(progress.seconds)}: give a larger {larger} to go on"
    )


def _device_of(began: str) -> torch.device:
    """Return the device that a comparison began on.

    Raises:
        UsageError: this machine has none.
    """
    from charrnn.device import choose_device

    try:
        return choose_device(began)
    except UsageError:
        raise UsageError(
            f"the comparison began on {began}, and there is none here: go on with it where there "
            "is one, or compare anew in another folder with --run"
        ) from None
