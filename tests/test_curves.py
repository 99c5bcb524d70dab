from __future__ import annotations

import math
import re
from typing import Any
from unittest import mock

import pytest

from charrnn.views.figures import line_chart
from charrnn.views.report import assessment_page
from tests.pages import ORIGIN, assessment, check, log, portrait


@pytest.mark.parametrize(
    "rows",
    [
        log(1, 1),
        log(3, 1),
        log(0, 1),
        log(3, 0),
        log(1000, 3),
        log(1000, 0),
        ({"step": 1, "train_nats_per_char": "x"}, *log(1, 0)),
        ({"step": 1, "characters": 1, "seconds": 1, "train_nats_per_char": math.inf}, *log(2, 0)),
    ],
)
def test_a_log_of_any_length_makes_curves(rows: Any) -> None:
    text = assessment_page([assessment()], [portrait(log=rows)], "poem", ORIGIN)
    assert "Learning" in check(text).texts["h2"]
    assert all(len(svg) < 20_000 for svg in re.findall(r"<svg .*?</svg>", text, re.DOTALL))


@pytest.mark.parametrize(
    ("logs", "said", "unlike"),
    [
        ([log(3, 1)], "the validation text; thin lines: on the training text.", True),
        ([log(0, 1)], "the validation text.", False),
        ([log(1, 1)], "the validation text.", False),
        ([log(3, 0)], "the training text.", True),
        ([log(3, 0), log(5, 0)], "the training text.", True),
        (
            [log(3, 0), log(5, 1)],
            "the training text or the validation text; thin lines: on the training text.",
            True,
        ),
    ],
)
def test_the_curves_are_said_to_be_what_was_drawn(logs: list[Any], said: str, unlike: bool) -> None:
    """A training loss is said to be measured differently, and when validations compare."""
    validates = "validation" in said
    drawn = [portrait(str(n), log=rows, inspection=None) for n, rows in enumerate(logs)]
    page = check(assessment_page([assessment() for _ in logs], drawn, "poem", ORIGIN))
    if unlike:
        said += (
            " Loss on the training text is taken before each update, with dropout and loss "
            "temperature if there are any."
        )
    if len(logs) > 1 and validates:
        said += " Losses compare only where runs validate on the same characters."
    assert page.texts["figcaption"][1].startswith(f"Marked lines: loss on {said} Nats per")


@pytest.mark.parametrize(("first", "said"), [(2.95, False), (3.05, True)])
def test_what_is_cut_off_is_said_and_nothing_else(
    first: float, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale goes from 2.0 to 2.9, with 0.054 to spare; the first row does not count."""
    logs = [
        [
            {"step": n, "characters": 100.0 * n, "seconds": 50.0 + n, "valid_nats_per_char": nats}
            for n, nats in course
        ]
        for course in (((1, first), (20, 2.9), (30, 2.5)), ((1, 2.7), (30, 2.0)))
    ]
    drawn = [portrait(str(n), log=rows, inspection=None) for n, rows in enumerate(logs)]
    chart = mock.Mock(wraps=line_chart)
    monkeypatch.setattr("charrnn.views.curves.line_chart", chart)
    page = check(assessment_page([assessment() for _ in logs], drawn, "poem", ORIGIN))
    for call in chart.call_args_list:
        assert call.kwargs["y_range"] == pytest.approx((2.0 - 0.054, 2.9 + 0.054))
    assert ("What lies above 2.95, at" in page.texts["figcaption"][1]) == said


def test_the_scale_has_room_for_the_training_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a single validation, at the end, would be a scale of zero height."""
    rows = [
        {"step": n, "characters": 100.0 * n, "seconds": 50.0 + n, "train_nats_per_char": nats}
        for n, nats in ((1, 3.5), (10, 3.0), (20, 2.5), (30, 1.8))
    ]
    rows.append({"characters": 3000.0, "seconds": 80.0, "valid_nats_per_char": 1.9})
    chart = mock.Mock(wraps=line_chart)
    monkeypatch.setattr("charrnn.views.curves.line_chart", chart)
    page = check(
        assessment_page(
            [assessment()], [portrait("one", log=rows, inspection=None)], "poem", ORIGIN
        )
    )
    assert chart.call_args.kwargs["y_range"] == pytest.approx((1.8 - 0.072, 3.0 + 0.072))
    assert "What lies above 3.07, at" in page.texts["figcaption"][1]


@pytest.mark.parametrize(("worst", "log"), [(9.9, False), (10.1, True), (43.0, True)])
def test_a_loss_that_leaps_leaves_the_others_apart(
    worst: float, log: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"step": n, "characters": 100.0 * n, "seconds": 50.0 + n, "train_nats_per_char": nats}
        for n, nats in ((1, 99.0), (10, worst), (20, 3.1), (30, 2.0))
    ]
    chart = mock.Mock(wraps=line_chart)
    monkeypatch.setattr("charrnn.views.curves.line_chart", chart)
    page = check(
        assessment_page(
            [assessment()], [portrait("one", log=rows, inspection=None)], "poem", ORIGIN
        )
    )
    for call in chart.call_args_list:
        assert call.kwargs["y_log"] == log
        label = "nats per character" + ", logarithmic" * log
        assert call.kwargs["y_label"] == label
        assert label in page.texts["text"]
        low, high = call.kwargs["y_range"]
        assert 0.7 < low / 2 < 1 < high / worst < 1.3
        if log:
            assert high / worst == pytest.approx(2 / low), "as much room at both ends"
    assert f"What lies above {high:.2f}, at the start" in page.texts["figcaption"][1]


def test_a_run_is_drawn_by_all_its_validations_and_a_thinned_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seven updates become three points: the means of three, of two and of two."""
    chart = mock.Mock(return_value="")
    monkeypatch.setattr("charrnn.views.curves.line_chart", chart)
    monkeypatch.setattr("charrnn.views.curves.POINTS", 3)
    assessment_page([assessment()], [portrait("one", log=log(7, 4))], "poem", ORIGIN)
    for call, name, scale in zip(
        chart.call_args_list, ("character-characters", "character-seconds"), (100, 0.5), strict=True
    ):
        assert call.args[0] == f"curves-{name}"
        thin, main = call.args[2]
        assert (thin.label, thin.faint, main.label, main.faint) == ("", True, "one", False)
        assert thin.dashed
        assert thin.x == pytest.approx([2 * scale, 4.5 * scale, 6.5 * scale])
        assert thin.y == pytest.approx([2.8, 2.55, 2.35])
        assert main.x == pytest.approx([scale, 2 * scale, 3 * scale, 4 * scale])
        assert main.y == pytest.approx([3.0, 2.9, 2.8, 2.7])


def test_of_very_many_validations_the_first_and_the_last_are_drawn_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 1,000, 150 points: some of them means of six, some of seven."""
    chart = mock.Mock(return_value="")
    monkeypatch.setattr("charrnn.views.curves.line_chart", chart)
    rows = log(0, 1000)
    page = assessment_page([assessment()], [portrait("one", log=rows)], "poem", ORIGIN)
    _, line = chart.call_args.args[2]
    seconds, nats = zip(*((r["seconds"], r["valid_nats_per_char"]) for r in rows), strict=True)
    assert len(line.x) == len(line.y) == 150
    assert (line.x[0], line.y[0], line.x[-1], line.y[-1]) == (0.5, nats[0], 500, nats[-1])
    assert line.x[1] == pytest.approx(sum(seconds[1:8]) / 7)
    assert line.y[-2] == pytest.approx(sum(nats[-7:-1]) / 6)
    assert f"one at {nats[-1]:.4f} (validation)" in page
