"""Put scores into the rows and sentences that a terminal and a page show.

Models are called what an assessment's ``checkpoint`` says: whoever shows them sets that first.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from charrnn import recipe
from charrnn.chance import Difference
from charrnn.command_words import comparison_command, flag
from charrnn.inference.assessment import After, Assessment
from charrnn.inference.baselines import Baseline
from charrnn.inference.evaluation import PositionScores, Scores
from charrnn.inference.ranking import (
    Setting,
    comparable,
    differences,
    setting_differences,
    settings,
)
from charrnn.nats import in_bits, perplexity
from charrnn.runs.comparison import Comparison
from charrnn.runs.comparison_plan import Plan
from charrnn.runs.matching import TOLERANCE
from charrnn.text.decoding import BYTES, text_encoding
from charrnn.text.vocabulary import MANY_UNKNOWN
from charrnn.wording import counted, joined, significant

COLUMNS = (
    "checkpoint", "cell", "parameters", "characters", "unknown",
    "nats/char", "bits/char", "bits/byte", "perplexity", "chars/s",
)  # fmt: skip


def stretches_say(scores: PositionScores) -> str:
    """Say over how many stretches the loss at each position is averaged."""
    return f"means of {scores.stretches:,} stretches" if scores.stretches > 1 else "one stretch"


def assessment_lines(assessments: Sequence[Assessment]) -> list[Sequence[str]]:
    """Return the table of scores and baselines: its head and its rows."""
    lines: list[Sequence[str]] = [COLUMNS]
    for one in assessments:
        shape = one.shape
        head = (
            one.checkpoint,
            f"{shape.cell} {shape.layers}x{shape.hidden}",
            f"{one.parameters:,}",
            f"{one.scores.characters:,}",
            f"{one.scores.unknown:,}",
        )
        lines.append([*head, *_scored(one.scores)])
        if one.dynamic:
            lines.append(["  dynamic evaluation", *head[1:], *_scored(one.dynamic)])
    for row in baseline_rows(assessments):
        priced = _priced(row.baseline.nats_per_char, row.bits_per_byte)
        lines.append([row.name, "", "", f"{row.scores.characters:,}", "", *priced, ""])
    return lines


def assessments_say(assessments: Sequence[Assessment]) -> Iterator[str]:
    """Yield what the table rests on, and the mean loss after a given text, if there is one."""
    if len({one.scores.characters for one in assessments}) > 1:
        of_bytes = dict.fromkeys(one.checkpoint for one in assessments if one.of_bytes)
        yield (
            f"{', '.join(of_bytes)}: a character is a byte; compare with the others by bits/byte"
            if of_bytes
            else "the models do not all count the same characters; compare them by bits/byte"
        )
    for one in assessments:
        if one.is_worse_than_guessing:
            yield f"{one.checkpoint}: {_worse_says(one)}"
    if assessments:
        ranked = settings(assessments)
        how = _how(assessments)
        yield from _settings_say(ranked, _names(assessments), how)
        yield from _in_no_mean(assessments, ranked)
        in_means = _names(model for one in ranked if one.is_varied for model in one.models)
        # Where the seeds changed nothing, one of them stands for all.
        again = _names(model for one in ranked if not one.is_varied for model in one.models[1:])
        if not in_means.issuperset(_names(comparable(assessments))):
            once = [one for one in assessments if one.checkpoint not in again]
            yield from _models_say(once, how)
    yield from _baselines_say(assessments)
    yield from (_after_says(one, one.after) for one in assessments if one.after)


def _worse_says(one: Assessment) -> str:
    """Say that a model is worse than guessing, and why if unknown characters are the cause."""
    share, why = one.scores.unknown / one.scores.characters, ""
    if share > MANY_UNKNOWN:
        why = f"; {_unknown_cost(share)}"
    return f"worse than guessing ({one.uniform_nats:.3f} nats){why}"


def _unknown_cost(share: float) -> str:
    return f"{100 * share:.0f} % of these characters are unknown, which is what costs so much"


def best_over_seeds(assessments: Sequence[Assessment]) -> str:
    """Say which setting has the lowest mean over seeds, if there are two or more."""
    ranked = settings(assessments)
    names = _names(assessments)
    alike = len(comparable(assessments)) == len(names)
    if len(ranked) < 2 or not alike:
        return ""
    name, how = _named(ranked[0], names), _how(assessments)
    bits, unit = in_bits(ranked[0].nats_per_char), ranked[0].models[0].unit
    return f" In the mean over seeds {name} is ahead{how}: {bits:.4f} bits per {unit}."


def _how(assessments: Sequence[Assessment]) -> str:
    return ", by dynamic evaluation" if assessments[0].dynamic else ""


def _models_say(assessments: Sequence[Assessment], how: str) -> Iterator[str]:
    """Yield how far the best model is ahead of each other, if the text is long enough."""
    pairs = differences(assessments)
    for pair in pairs:
        yield _apart(pair, pair.better, pair.worse)
    if pairs:
        best = next(one for one in assessments if one.checkpoint == pairs[0].better)
        together = "s, which hold for all pairs together" if len(pairs) > 1 else ""
        yield (
            f"\N{PLUS-MINUS SIGN} gives a difference's 95 % confidence interval over "
            f"{len(best.scores.nats_N)} blocks of this text{how} (paired t test{together}). It is "
            "supported where that leaves out 0: for these models on text of this kind. Other "
            "seeds may change more: train several of each."
        )


def _settings_say(ranked: Sequence[Setting], every: Collection[str], how: str) -> Iterator[str]:
    """Yield the mean of models that differ in their seed, and how far the best is ahead."""
    names = {}
    for one in ranked:
        name = names[one.name] = _named(one, every)
        seeds = f"{len(one.losses)} seeds"
        nats = one.nats_per_char
        if not one.is_varied:
            yield (
                f"{name}: {nats:.4f} nats ({in_bits(nats):.4f} bits){how} from each of {seeds}, "
                "which changed nothing"
            )
            continue
        steps = [model.run.step for model in one.models if model.run is not None]
        fewest, most = min(steps), max(steps)
        after = f", after {fewest:,} to {most:,} steps" if fewest < most else ""
        yield (
            f"{name}: mean of {seeds} {nats:.4f} nats ({in_bits(nats):.4f} bits), standard "
            f"deviation {one.spread:.4f} ({in_bits(one.spread):.4f}){how}{after}"
        )
    pairs = setting_differences(ranked)
    compared = len({name for pair in pairs for name in (pair.better, pair.worse)})
    for pair in pairs:
        if compared <= 3 or pair.better == pairs[0].better:
            yield _apart(pair, names[pair.better], names[pair.worse])
    if pairs:
        yield _over_seeds("settings", [len(one.losses) for one in ranked if one.is_varied])


def _named(setting: Setting, every: Collection[str]) -> str:
    """Return a name for a setting, given those of all models."""
    its = [one.checkpoint for one in setting.models]
    return _together(its, {*every} - {*its})


def _in_no_mean(assessments: Sequence[Assessment], ranked: Sequence[Setting]) -> Iterator[str]:
    """Yield which models are in no mean over seeds, and why, where others are or might be."""
    runs = {one.checkpoint: one.run for one in comparable(assessments) if one.run is not None}
    of_setting = Counter(run.setting for run in runs.values())
    unfinished = [
        name for name, run in runs.items() if run.is_unfinished and of_setting[run.setting] > 1
    ]
    if unfinished:
        yield f"{joined(unfinished, 'and')}: in no mean over seeds, as the run is not finished"
    for one in ranked:
        again = {
            name
            for name, run in runs.items()
            if run.setting == runs[one.name].setting and not run.is_unfinished
        }
        if left := again - _names(one.models):
            names = [name for name in runs if name in left]
            yield f"{joined(names, 'and')}: in no mean, as another here has the seed"


def _names(models: Iterable[Assessment]) -> set[str]:
    return {one.checkpoint for one in models}


def _over_seeds(kind: str, seeds: Sequence[int]) -> str:
    """Say what the margins between means over seeds are.

    Args:
        kind: what the means are of: "cells".
        seeds: how many seeds each mean is of.
    """
    how = f", and an F test finds that the {kind} differ" if len(seeds) == 3 else ""
    share = f"some 5 % of comparisons of equal {kind} support one"
    if len(seeds) > 3:
        share = "the intervals hold for all pairs together"
    tests = "Welch's tests"
    if max(seeds) == 2:
        tests = f"tests that take the {kind} to spread alike, as two seeds cannot tell"
    few = "Two seeds show little: take more. " if min(seeds) == 2 else ""
    return (
        f"{few}\N{PLUS-MINUS SIGN} gives a difference's 95 % confidence interval over the seeds. "
        f"It is supported where that leaves out 0{how} ({tests}; {share}, if the number of "
        "seeds was fixed beforehand). Seeds vary weights and dropout, not the text: another text, "
        f"or another part of this one, may rank the {kind} otherwise."
    )


def _together(names: Sequence[str], others: Collection[str]) -> str:
    """Return a pattern for names that begin alike, unlike all others; or else all of them.

    >>> _together(["runs/rule-1", "runs/rule-2"], ["runs/none-1"])
    'runs/rule-*'
    >>> _together(["run-1", "run-2"], ["run-3"]), _together(["a", "b"], [])
    ('run-1 and run-2', 'a and b')
    """
    alike = itertools.takewhile(lambda places: len(set(places)) == 1, zip(*names, strict=False))
    shared = "".join(letter for letter, *_ in alike)
    is_cut = shared[-1:] in ("", "/") or "\\" in shared  # which begins an escape
    if is_cut or any(other.startswith(shared) for other in others):
        return joined(names, "and")
    return f"{shared}*"


def _after_says(one: Assessment, after: After) -> str:
    checkpoint, how = one.checkpoint, " by dynamic evaluation" if one.dynamic else ""
    if not after.characters:
        lacks = f": the text lacks {after.lacks}" if after.lacks else ", or only at the end"
        return f"{checkpoint}: {after.text!r} does not occur{lacks}"
    # A number directly after right-to-left text would be displayed before it.
    return (
        f"{checkpoint}: after {after.text!r} a {one.unit} costs {after.nats_per_char:.4f} "
        f"nats{how} (mean of {after.characters:,})"
    )


@dataclass(frozen=True)
class BaselineRow:
    """A baseline as a table or figure shows it."""

    name: str
    """Includes a model's name, or its unit, if not all models share the baseline."""
    baseline: Baseline
    scores: Scores
    """A model's scores on the same characters."""
    same: tuple[str, ...]
    """The other models that share the baseline, if ``name`` includes a model's."""

    @property
    def bits_per_byte(self) -> float:
        """The baseline's loss in bits per byte."""
        return self.baseline.bits_per_byte(self.scores)


def baseline_rows(assessments: Sequence[Assessment]) -> list[BaselineRow]:
    """Return the models' baselines, each once; its name says whose it is unless all share it."""
    of: dict[tuple[Baseline, int, int], list[Assessment]] = {}
    for one in assessments:
        for baseline in one.baselines:
            key = (baseline, one.scores.characters, one.scores.bytes)
            of.setdefault(key, []).append(one)
    rows = []
    for (baseline, _, _), models in of.items():
        first, name = models[0], baseline.name
        same: list[str] = []
        if len(models) < len(assessments):
            if baseline.of_text:
                name += f", per {first.unit}"
            else:
                owner, *same = dict.fromkeys(one.checkpoint for one in models)
                name += f" ({owner})"
        rows.append(BaselineRow(name, baseline, first.scores, tuple(same)))
    return rows


def _baselines_say(assessments: Sequence[Assessment]) -> list[str]:
    """Return what each baseline is, and for which models if they differ in it."""
    rows, lines = baseline_rows(assessments), []
    for row in rows:
        of_kind = [other for other in rows if other.baseline.name == row.baseline.name]
        is_one = all(
            other.baseline.about == row.baseline.about and not other.same for other in of_kind
        )
        name = row.baseline.name if is_one else row.name
        same = f"; the same for {', '.join(row.same)}" if row.same else ""
        lines.append(f"{name}: {row.baseline.about}{same}")
    return list(dict.fromkeys(lines))


def _scored(scores: Scores) -> list[str]:
    speed = f"{scores.chars_per_second:,.0f}"
    return [*_priced(scores.nats_per_char, scores.bits_per_byte), speed]


def _priced(nats_per_char: float, bits_per_byte: float) -> list[str]:
    return [
        f"{nats_per_char:.4f}",
        f"{in_bits(nats_per_char):.4f}",
        f"{bits_per_byte:.4f}",
        perplexity_figure(perplexity(nats_per_char)),
    ]


def perplexity_figure(perplexity: float) -> str:
    """Return a perplexity in figures; a large one needs no decimals.

    >>> perplexity_figure(4.0511), perplexity_figure(2631.69), perplexity_figure(151636722.849)
    ('4.051', '2,631.690', '151,636,723')
    >>> perplexity_figure(1.5e144)
    '1.500e+144'
    """
    if perplexity >= 1e12:
        return f"{perplexity:.3e}"
    return f"{perplexity:,.3f}" if perplexity < 10_000 else f"{perplexity:,.0f}"


def position_lines(scores: PositionScores) -> list[list[str]]:
    """Return the table of mean losses at 1, 2, 3 to 4, 5 to 8, ... characters after a reset."""
    nats_T = scores.nats_T
    places = [2**k for k in range(len(nats_T).bit_length())]
    if places[-1] != len(nats_T):
        places.append(len(nats_T))
    lines = [["from", "to", "nats/char", "bits/char"]]
    for first, last in itertools.pairwise([0, *places]):
        nats = float(nats_T[first:last].mean())
        lines.append([f"{first + 1:,}", f"{last:,}", f"{nats:.4f}", f"{in_bits(nats):.4f}"])
    return lines


def comparison_lines(comparison: Comparison) -> list[list[str]]:
    """Return a comparison's table: its head, and a row per cell with the result first."""
    several = comparison.plan.seeds > 1
    lines = [[
        "cell", "layers x width", "nats/char", *(["spread"] if several else []), "bits/char",
        "perplexity", "valid nats", "valid perplexity", "parameters", "multiply-adds",
        "µs/char", "seconds", "steps", "clipped steps",
    ]]  # fmt: skip
    for cell in comparison.cells:
        one, row = cell.best, cell.to_dict()
        valid = row["valid_nats_per_char"]
        lines.append(
            [
                cell.cell,
                f"{one.layers} x {one.hidden}",
                f"{row['nats_per_char']:.4f}",
                *(["-" if cell.spread is None else f"{cell.spread:.4f}"] if several else []),
                f"{row['bits_per_char']:.4f}",
                perplexity_figure(row["perplexity"]),
                "-" if valid is None else f"{valid:.4f}",
                "-" if valid is None else perplexity_figure(row["valid_perplexity"]),
                f"{one.parameters:,}",
                f"{one.multiply_adds:,}",
                f"{1e6 / row['train_chars_per_second']:.1f}",
                f"{row['seconds']:.0f}",
                f"{row['steps']:,.0f}",
                f"{row['clipped_steps']:,.0f}",
            ]
        )
    return lines


def scored_part(plan: Plan) -> str:
    """Return the name of the part of the text that models are compared on."""
    if plan.compared_on == "test":
        return "test part"
    return "validation text" if plan.valid else "validation part"


def comparison_says(comparison: Comparison) -> Iterator[str]:
    """Yield what the table rests on, and which differences are more than chance."""
    plan, unknown = comparison.plan, comparison.cells[0].best.unknown
    yield _compared_how(comparison)
    yield from _given_to_all(plan)
    if unknown:
        yield (
            f"{unknown:,} of these characters {'is' if unknown == 1 else 'are'} not in the "
            "vocabulary; each is charged as the unknown symbol and spelled out."
        )
    yield from _worse_than_guessing(comparison)
    yield from _left_out(comparison)
    if len(comparison.cells) < 2:
        return
    if plan.minutes is not None:
        yield f"Equal time{_validating(comparison)}: a faster cell does more steps."
    if plan.seeds == 1:
        folder = Path(comparison.cells[0].best.run).parent
        more = comparison_command(folder, "--seeds", "3")
        yield f"One seed has no spread; three show which differences are more than chance: {more}"
        return
    yield from _differences(comparison)


def _differences(comparison: Comparison) -> Iterator[str]:
    """Yield how far apart each two cells are, and when that is more than chance."""
    for cell in comparison.cells:
        if cell.spread is None:
            yield (
                f"Only one run of {cell.cell} is left, which has no spread: no difference from it "
                "is supported."
            )
    pairs = [pair for pair in comparison.differences if pair.margin is not None]
    for pair in pairs:
        yield _apart(pair, pair.better, pair.worse) + _on_validation(comparison, pair)
    if pairs:
        seeds = [len(cell.runs) for cell in comparison.cells if len(cell.runs) > 1]
        yield _over_seeds("cells", seeds)


def _apart(pair: Difference, better: str, worse: str) -> str:
    """Say how far apart two cells or models are, by name, and if that is more than chance."""
    verdict = "supported" if pair.supported else "may be chance"
    return (
        f"{better} is {ahead(pair.nats)} \N{PLUS-MINUS SIGN} "
        f"{ahead(pair.margin or 0.0)} nats ahead of {worse}: {verdict}"
    )


def _on_validation(comparison: Comparison, pair: Difference) -> str:
    """Say so if the validation part ranks a pair of cells the other way."""
    if comparison.plan.compared_on != "test" or not comparison.is_validated:
        return ""
    valid: dict[str, float] = {
        cell.cell: cell.mean("valid_nats_per_char") for cell in comparison.cells
    }
    behind = valid[pair.better] - valid[pair.worse]
    return f"; on the validation part it is {ahead(behind)} behind" if behind > 0 else ""


def ahead(nats: float) -> str:
    """Return a difference of losses in figures, readable however small it is.

    >>> ahead(0.0123), ahead(0.0000123), ahead(0.0)
    ('0.0123', '1.2e-05', '0.0000')
    """
    return significant(nats, 2) if 0 < nats < 0.0001 else f"{nats:.4f}"


def seeds_meant(comparison: Comparison) -> str:
    """Say over how many seeds a cell's mean is, if there are several."""
    return f"{'up to ' if comparison.failures else ''}{comparison.plan.seeds} seeds"


def _compared_how(comparison: Comparison) -> str:
    """Say how the models were matched and trained, and on what their checkpoints were scored."""
    plan, one = comparison.plan, comparison.cells[0].best
    (budget,) = (
        counted(value, name)
        for name in ("minute", "epoch", "step")
        if (value := getattr(plan, f"{name}s")) is not None
    )
    parameters = [cell.best.parameters for cell in comparison.cells]
    apart = max(parameters) / min(parameters) - 1
    matched = "parameters" if plan.match == "parameters" else "width"
    if plan.match == "parameters" and apart > TOLERANCE:
        matched += f" as nearly as widths allow, up to {100 * apart:.1f} % apart"
    matched = f"Matched by {matched}; " if len(parameters) > 1 else ""
    seeds = f"mean of {seeds_meant(comparison)}" if plan.seeds > 1 else "one seed"
    predictions = counted(one.characters, "prediction")
    chosen = "best checkpoint by validation" if comparison.is_validated else "last checkpoint"
    spread = "; spread: standard deviation over the seeds" if plan.seeds > 1 else ""
    flattered = "" if plan.compared_on == "test" else ", which flatters it, as it was chosen there"
    of_bytes = plan.encoding is not None and text_encoding(plan.encoding) == BYTES
    unit = "; a character is a byte" if of_bytes else ""
    return (
        f"{matched}{budget} a run, {seeds}; the {chosen}, on the {predictions} of the "
        f"{scored_part(plan)}{flattered}; µs/char: training time in microseconds; multiply-adds: "
        f"per character{spread}{unit}."
    )


def _worse_than_guessing(comparison: Comparison) -> Iterator[str]:
    """Yield which runs are worse than guessing, although all their losses were finite."""
    for cell in comparison.cells:
        worse = [run for run in cell.runs if run.is_worse_than_guessing]
        if not worse:
            continue
        one = worse[0]  # all are scored on the same predictions
        why = (
            "nothing was learned, so its figures say nothing about the cell; a lower --lr or more "
            "time may help."
        )
        if (share := one.unknown / one.characters) > MANY_UNKNOWN:
            why = f"{_unknown_cost(share)}; compare on text like the training text."
        yield (
            f"{cell.cell}, {_seeds([run.seed for run in worse])}: worse than guessing "
            f"({one.uniform_nats:.3f} nats); {why}"
        )


def _seeds(seeds: Sequence[int]) -> str:
    """Return seeds in words.

    >>> _seeds([1]), _seeds([1, 2, 3])
    ('seed 1', 'seeds 1, 2 and 3')
    """
    return f"seed{'s' if len(seeds) > 1 else ''} {joined(list(map(str, seeds)), 'and')}"


def _left_out(comparison: Comparison) -> Iterator[str]:
    """Yield which runs failed, and how many seeds are left of their cells."""
    for cell in comparison.plan.cells:
        seeds = [failure.seed for failure in comparison.failures if failure.cell == cell]
        if not seeds:
            continue
        left = comparison.plan.seeds - len(seeds)
        which = f", {_seeds(seeds)}," if left else ""
        yield f"{cell}{which} is left out: a loss was not finite; a lower --lr may help." + (
            f" Its figures come from {counted(left, 'seed')} only, which flatters it."
            if left
            else ""
        )


def _validating(comparison: Comparison) -> str:
    """Say what share of the time validations took, if any."""
    shares = [
        round(100 * cell.mean("validation_seconds") / cell.mean("seconds"))
        for cell in comparison.cells
    ]
    if not any(shares):
        return ""
    least, most = min(shares), max(shares)
    share = f"{least} %" if least == most else f"{least} to {most} %"
    return f", of which validations and the work after each took {share}"


def _given_to_all(plan: Plan) -> Iterator[str]:
    """Yield the settings that were given instead of chosen by rule, if there are any."""
    rules = (
        "optimiser", "lr", "weight_decay", "clip_norm", "dropout", "weight_drop", "dropout_masks",
        "loss_temperature",
    )  # fmt: skip
    given = recipe.given({name: getattr(plan, name) for name in rules})
    if given:
        words = (
            f"{flag(name)} {value if isinstance(value, str) else f'{value:g}'}"
            for name, value in given.items()
        )
        own = (
            "; the rate of the other weights keeps each cell's ratio to it"
            if plan.lr is not None and plan.optimiser in (None, "muon") and len(plan.cells) > 1
            else ""
        )
        yield f"Every run was given {' '.join(words)}{own}."
