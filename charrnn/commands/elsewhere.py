"""What an unknown option or command may be meant to be: other programs' names, and ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from charrnn.wording import joined

#: An option or argument -> its names in other programs (docs/coming-from.md) or other commands,
#: without leading dashes, and with dashes in place of underscores.
ELSEWHERE = {
    "TEXT": "data data-dir dataset file input input-h5 input-txt text train",
    "--text": "data data-dir dataset file input input-txt",
    "CHECKPOINT": "checkpoint init-from model out-dir run save-dir",
    "--cell": "model model-type",
    "--hidden": "hidden-dim hidden-size n-embd n-hidden rnn-size units",
    "--layers": "n-layer n-layers num-layers rnn-layers",
    "--embedding": "dim-embeddings embedding-dim embedding-size wordvec-size",
    "--bptt": "block-size chunk-len context-length max-length seq-len seq-length",
    "--lr": "learning-rate",
    "--clip-norm": "clip grad-clip",
    "--epochs": "max-epochs n-epochs num-epochs",
    "--steps": "iterations iters max-iters max-steps n-iters",
    "--valid-share": "val-frac",
    "--test-share": "test-frac",
    "--validate-every": "eval-every eval-interval eval-val-every",
    "--patience": "early-stopping",
    "--run": "checkpoint-dir checkpoint-name out out-dir output save-dir savefile",
    "--resume": "reset-iterations",
    "--optimiser": "optim optimizer",
    "--device": "cuda gpu gpuid",
    "--precision": "dtype",
    "--prompt": "prefix prime prime-str primetext start start-text",
    "--length": "max-gen-length max-new-tokens predict-len",
    "--temperature": "sample",
    "--count": "num-samples",
}


def meant(error: Any, arguments: Sequence[str]) -> str | None:
    """Return a message that says what an unknown option or command may be meant to be.

    An option is known by its name elsewhere, or is ours with other dashes: -length, --batch_size.

    Args:
        error: typer's, of a command line that it cannot read.
        arguments: the words of that command line.

    Returns:
        None if the error is another one, or nothing can be said.
    """
    message = error.message
    if message.startswith("No such command") and "Did you mean" not in message:
        names = joined([*error.ctx.command.commands], "and")
        return f"{message.removesuffix('.')}: there are {names}"
    if not message.startswith("No such option"):
        return None
    # What is to be typed -> its names elsewhere.
    ours: dict[str, str] = {}
    for one in error.ctx.command.get_params(error.ctx):
        if one.param_type_name == "argument":
            ours[f"{error.ctx.command_path} {one.metavar}"] = ELSEWHERE.get(one.metavar, "")
        else:
            longest = max(one.opts, key=len)  # --help, not -h: typer has them in any order
            ours[longest] = f"{longest[2:]} {ELSEWHERE.get(longest, '')}"
    letter = error.option_name[1:]  # of -rnn_size it is r; of -hidden_size, as -h is known, i
    for word in arguments:
        typed = word.partition("=")[0]
        name = typed.lstrip("-").replace("_", "-")
        is_short = typed.startswith("-") and not typed.startswith("--")
        # Others may be values: --prompt -start.
        if typed == error.option_name or (is_short and letter in typed):
            for here, names in ours.items():
                if name in names.split():
                    return f"No such option: {typed}: use {here}"
    return None
