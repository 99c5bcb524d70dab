"""``charrnn sample``: text from a trained model."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import typer

from charrnn.commands import options
from charrnn.commands.stdio import read_prompt, say, say_where
from charrnn.commands.stopping import compiling
from charrnn.config import SampleConfig, UnknownName, WeightsName
from charrnn.errors import UsageError

#: title -> flags: how the help groups the options.
GROUPS = {
    "Text": "--prompt --echo --unknown --length --stop --count",
    "Drawing": "--temperature --top-k --top-p --seed",
    "Device and output": "--weights --device --json",
}


def sample(
    context: typer.Context,
    checkpoint: options.Checkpoint,
    prompt: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            parser=options.typed,
            help="Text to continue (default: a line break); - reads standard input.",
        ),
    ] = "",
    length: Annotated[int, typer.Option(help="How many new characters; 0: no limit.")] = 1000,
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
        str | None,
        typer.Option(
            metavar="TEXT",
            parser=options.typed,
            help="End after this text (a line break: $'\\n').",
        ),
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
        Literal["auto", WeightsName],
        typer.Option(
            help="Precision of the weights on a CPU; auto: bf16 where the model was trained in it "
            "and that is faster, else fp32. Fewer bits change the text a little, and are faster "
            "where there is a C compiler and the processor multiplies them.",
        ),
    ] = "auto",
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Write text like the text that the model was trained on."""
    config = SampleConfig(**options.fields_given(context, SampleConfig, but=("weights",)))
    if as_json and length == 0:
        raise UsageError("--length 0 may never end: leave out --json")

    from charrnn.compute.compiler import SAMPLING, find_compiler

    with compiling(SAMPLING, device) as signals:
        with signals.loading():
            from charrnn.compute.device import choose_device
            from charrnn.compute.products import why_none
            from charrnn.compute.steps import Steps
            from charrnn.inference.sampling import (
                collect,
                encode_stop,
                prepare_prompt,
                unwarned,
                weights_for,
            )
            from charrnn.inference.sampling import sample as draw
            from charrnn.storage.trained import load_model, trained_in
            from charrnn.views.sample_view import (
                print_as_json,
                print_as_made,
                print_samples,
            )

        where = choose_device(device)
        if weights not in ("auto", "fp32") and where.type != "cpu":
            raise UsageError(f"--weights {weights} is for a CPU: leave it out on {where.type}")
        model, vocabulary, trained = load_model(checkpoint, where)
        say_where("sampling", where)
        ids, note = prepare_prompt(read_prompt(prompt, vocabulary), vocabulary, unknown)
        if note:
            say(note)
        ending = encode_stop(vocabulary, config.stop)
        if weights == "auto":
            weights = weights_for(trained_in(trained, where)) if where.type == "cpu" else "fp32"
        elif weights != "fp32" and not find_compiler():
            say(f"note: without a C compiler --weights {weights} is no faster")
        elif weights != "fp32" and (why := why_none(Steps, weights)):
            say(f"note: --weights {weights} is no faster here: {why}")
        config = replace(config, weights=weights)
        start = ids.tolist() if echo else []
        steps = draw(model, vocabulary, ids, config)
        with unwarned():
            if as_json:
                print_as_json(vocabulary, start, collect(count, steps), config, ending, where.type)
            elif count > 1:
                print_samples(vocabulary, start, collect(count, steps))
            else:
                print_as_made(vocabulary, start, steps)
