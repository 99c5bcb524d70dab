"""Claims 1 and 2: one set of weights for any length, and the equations of a step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lesson.lab import Lab
from lesson.section import Judgement, Section, Table, judged

#: Difference of logits below which float32 and float64 count as equal.
SAME = 1e-3


def compare(lab: Lab, name: str, how: str) -> str:
    """Return the command that trains and compares the cells.

    Args:
        lab: the lab to run it in.
        name: the comparison's folder.
        how: its budget, and any other options of its own.
    """
    return (
        f"charrnn compare{lab.words} {how} --seeds {lab.size.cell_seeds} --hidden "
        f"{lab.size.hidden} --valid-share {lab.valid_share} --test-share {lab.valid_share} "
        f"--device cpu --precision fp32 --run checkpoints/lesson/{name} --json"
    )


def compare_steps(lab: Lab) -> str:
    """Return the command that trains the models used by most claims."""
    return compare(lab, "steps", f"--steps {lab.size.steps}")


def run_of(cell: str) -> str:
    """Return the folder of one of these models, of the first seed."""
    return f"checkpoints/lesson/steps/{cell}-seed1"


def inspect(lab: Lab, cell: str) -> str:
    """Return the beginning of a command that inspects one of these models."""
    return f"charrnn inspect {run_of(cell)} --part test --characters {lab.size.inspected}"


def untouched(lab: Lab) -> str:
    """Say that nothing was trained or chosen on the part of the text that is inspected."""
    defaults = "; charrnn's defaults were chosen on parts of this library" if not lab.text else ""
    return f"nothing was trained and no checkpoint chosen{defaults}"


def length(lab: Lab) -> Section:
    """Score texts of several lengths with the same checkpoint."""
    rows = {row["cell"]: row for row in lab.json(compare_steps(lab))}
    # No longer than the held-out part, which the models were not trained on.
    lengths = [n for n in lab.size.lengths if n <= lab.held_out]
    read = [f"text = open('{lab.words.strip()}', 'rb').read().decode()"]
    if lab.text is None:
        read = [
            "from charrnn.text.files import embedded_corpus",
            "text = b''.join(open(path, 'rb').read() for path in embedded_corpus()[-40:]).decode()",
        ]
    # In bytes, so that line endings stay as they are.
    file, cut = _end("{n}"), f"text[-{max(lengths)}:][:n].encode()"
    loop = [f"for n in {tuple(lengths)}:", f"    open(f'{file}', 'wb').write({cut})"]
    write = "\n".join(['python -c "', *read, *loop, '"'])
    scoring = [
        f"charrnn evaluate {run_of('lstm')} --text {_end(n)} --device cpu --json" for n in lengths
    ]
    lab.do(write)
    scores = [
        # The first character is read but not predicted.
        (row["characters"] + 1, row["parameters"], row["nats_per_char"])
        for (row,) in map(lab.json, scoring)
    ]
    table = Table(
        ["characters", "parameters used", "nats/char", "parameters, if each step had its own"],
        [
            [f"{n:,}", f"{parameters:,}", f"{nats:.3f}", f"{n * parameters:,}"]
            for n, parameters, nats in scores
        ],
        words=0,
    )
    return Section(
        title="Any length",
        claim="A recurrent network takes input of any length, because one set of weights serves "
        "every step; separate weights for each of 1,000 steps would be 1,000 times as many.",
        why=f"""
A feed-forward network needs an input for every character that it is to see. A recurrent network
reads one character at a time and keeps a state: `h_t = f(h_{{t-1}}, x_t)` with the same `f`, and so
the same weights, at every `t`. The length of the text does not enter the model. The models trained
here read {rows["lstm"]["runs"][0]["trained_characters"]:,} characters each and have nearly the same
number of parameters. Most of the claims below look at the three models of seed 1; claims 10 and 11
look at all of them. The texts scored here are the first characters of the last {max(lengths):,}, on
which {untouched(lab)}.
""",
        commands=[compare_steps(lab), write, *scoring],
        tables=[table],
        rule="holds if every length is scored with the same number of parameters, as the program "
        "is built to do; otherwise it does not hold. (A loss that is no finite number would end "
        "the lesson.)",
        judgement=judge_length([(n, parameters) for n, parameters, _ in scores]),
    )


def _end(characters: object) -> str:
    """Return the file with that many characters from the end part of the text."""
    return f"corpora/end-{characters}.txt"


def judge_length(used: Sequence[tuple[int, int]]) -> Judgement:
    """Judge claim 1.

    Args:
        used: characters and parameters of each length, shortest first.
    """
    counts = {parameters for _, parameters in used}
    (shortest, parameters), (longest, _) = used[0], used[-1]
    return judged(
        [len(counts) == 1],
        f"The same {parameters:,} parameters score {shortest:,} characters and {longest:,}; with a "
        f"separate copy for each of 1,000 steps there would be {1000 * parameters:,}."
        if len(counts) == 1
        else "The number of parameters depends on the length of the text.",
        "The losses are of different stretches of text, so they cannot be compared; what more "
        "context is worth is measured in claim 9.",
    )


def step(lab: Lab) -> Section:
    """Compare the printed equations with the models."""
    commands = [
        f"{inspect(lab, cell)} --only step --device cpu --json" for cell in ("rnn", "lstm", "gru")
    ]
    steps = {row["cell"]: row["step"] for row in map(lab.json, commands)}
    *of_units, y, p = steps["rnn"]["quantities"]
    numbers = Table(
        ["plain RNN", *(f"unit {n + 1}" for n in range(len(of_units[0]["units"])))],
        _step_rows(of_units),
    )
    symbols = steps["rnn"]["likeliest"]
    ends = Table(
        [f"after {_symbol(steps['rnn']['read'])}, likeliest next", *map(_symbol, symbols)],
        _step_rows([y, p]),
    )
    differences = Table(
        ["cell", "lines of a step", "largest difference in a state", "in a logit", "nats/char by "
         "the lines", "by the model"],
        [
            [
                cell.upper(),
                "; ".join(
                    f"{line['name']} = {line['equation']}".replace("|", "\\|")
                    for line in found["quantities"]
                    if line["name"] not in ("y", "p")
                ),
                f"{found['state_difference']:.1e}",
                f"{found['logits_difference']:.1e}",
                f"{found['written_nats']:.6f}",
                f"{found['model_nats']:.6f}",
            ]
            for cell, found in steps.items()
        ],
        words=2,
    )  # fmt: skip
    return Section(
        title="One step",
        claim="A step is nothing but a linear map and a nonlinearity, tanh in the original.",
        why=f"""
Elman's network, as it is used today, computes `a = W e + U h + b`, a linear map of the
character's embedding `e` and the state `h`, and `h' = tanh(a)`; the original of 1990 has the
logistic function instead of tanh. At the top, `p = softmax(y)` turns each character's logit `y`
into a probability. `--only step` computes these lines and nothing else, in numpy with the numbers
from the checkpoint, for {steps["rnn"]["characters"]} characters one after another, and compares the
results with those of the model's fast path on the same text. σ is the logistic function, ∘ the
product unit by unit. The GRU is that of torch and cuDNN: its reset gate `r` scales `U_n h + d`,
where Cho et al. (2014) have `U_n (r ∘ h)`.
""",
        commands=commands,
        tables=[numbers, ends, differences],
        rule="in part if the plain RNN's two lines and its model differ by less than "
        f"{SAME:g} in every logit; otherwise it does not hold. It cannot hold as a whole, whatever "
        "is measured: Elman's network of 1990 has another nonlinearity, and LSTM and GRU have "
        "products as well. Their lines are compared with their models, too, but do not count here.",
        judgement=judge_step(steps),
    )  # fmt: skip


def _step_rows(quantities: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the rows of a step's numbers: each equation's, and below them the model's."""
    return [
        [f"{quantity['name']} {line}", *(f"{value:+.5f}" for value in values)]
        for quantity in quantities
        for line, values in (
            (f"= {quantity['equation']}", quantity["units"]),
            ("by the model", quantity["model"]),
        )
        if values is not None
    ]


def _symbol(character: str) -> str:
    """Return a character escaped for a Markdown table."""
    if character == "\N{REPLACEMENT CHARACTER}":
        return "unknown"
    return re.sub(r"([|`*_<\\\[\]])", r"\\\1", repr(character))


def judge_step(steps: Mapping[str, Mapping[str, Any]]) -> Judgement:
    """Judge claim 2.

    Args:
        steps: cell -> the answer of ``inspect --only step``.
    """
    plain = steps["rnn"]
    gated = [cell for cell in steps if cell != "rnn"]
    names = " and ".join(cell.upper() for cell in gated)
    worst = max(steps[cell]["logits_difference"] for cell in gated)
    agree = plain["logits_difference"] < SAME
    return judged(
        [agree, False],
        "It holds for the plain RNN as it is used today; Elman's of 1990 has the logistic "
        f"function, and {names} also multiply gates with states."
        if agree
        else "",
        "For the plain RNN the two lines give the model's logits within "
        f"{plain['logits_difference']:.1e}, the rounding of float32."
        if agree
        else f"The lines miss the plain RNN's logits by up to {plain['logits_difference']:.1e}.",
        f"The lines of {names} also give their models' logits, within {worst:.1e}; there gates and "
        "states are multiplied with each other, unit by unit."
        if worst < SAME
        else f"The lines of {names} miss their models' logits by up to {worst:.1e}.",
    )
