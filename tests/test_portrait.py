from __future__ import annotations

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from charrnn.analysis.activity import Activation, Unit, activation
from charrnn.analysis.flow import gradient_flow, initial_model
from charrnn.analysis.inspection import Inspection
from charrnn.analysis.norms import clipping
from charrnn.analysis.stretch import read_stretch
from charrnn.config import InspectConfig, SampleConfig, TextSource, TrainConfig
from charrnn.errors import CheckpointError, NonFiniteError
from charrnn.inference.evaluation import Prices, prices
from charrnn.inference.sampling import Drawn
from charrnn.network.model import CharModel
from charrnn.runs.comparing import compare
from charrnn.runs.comparison import Comparison, RunResult
from charrnn.runs.comparison_plan import Plan
from charrnn.runs.subject import load_subjects
from charrnn.storage.metrics import read_log
from charrnn.storage.reading import recorded_part
from charrnn.storage.trained import load_model
from charrnn.text.scanning import scan
from charrnn.text.vocabulary import Vocabulary
from charrnn.views.portrait import (
    SAMPLE,
    labels,
    portray,
    portray_comparison,
    portray_inspected,
    portray_subjects,
    shortened,
)
from charrnn.views.report import inspection_page
from tests.conftest import make_part
from tests.pages import ORIGIN, check, inspection
from tests.small import make_model, make_stretch


def test_a_comparison_looks_into_each_model_by_its_own_seed_and_window(
    prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It inspects the end of the text, if that is long enough."""
    cpu = torch.device("cpu")
    plan = Plan(
        texts=(str(prose),), cells=("gru",), steps=3, seed=4, hidden=5, batch_size=3, bptt=11
    )
    events = compare(tmp_path, plan, device=cpu, command="")
    results = [event for event in events if isinstance(event, RunResult)]
    made = Comparison.of(plan, results)
    ((drawn,), ((run, rows),)) = portray_comparison(made)
    assert (drawn.label, run, drawn.log) == ("GRU", results[0], rows)
    assert [row["step"] for row in rows if "gradient_norm" in row] == [3]
    assert drawn.inspection is not None
    assert drawn.inspection.memory is not None
    assert drawn.inspection.memory.bptt == 11
    expected = gradient_flow(initial_model(drawn.run.shape, 4), make_stretch(100)).spectral_radii
    assert drawn.inspection.gradient_flow[1].spectral_radii == expected
    assert drawn.inspection.gates
    assert drawn.inspection.units
    assert drawn.inspection.clipping is not None
    unasked = drawn.inspection.step, drawn.inspection.cuts, drawn.inspection.truncation
    assert unasked == (None, (), ())
    part = scan([str(prose)], "utf-8").whole
    monkeypatch.setattr("charrnn.views.portrait.SAMPLE", replace(SAMPLE, length=3))
    for long_enough in (False, True):
        end = part.first(99 + long_enough)
        monkeypatch.setattr("charrnn.views.portrait.recorded_part", mock.Mock(return_value=end))
        ((short,), _) = portray_comparison(made)
        assert (short.inspection is not None) == long_enough
    best = Path(run.run) / "best.safetensors"
    best.unlink()
    with pytest.raises(
        CheckpointError, match=re.escape(f"{best}: missing; to train this run anew")
    ):
        portray_comparison(made)


def test_a_comparison_looks_into_each_cell_s_best_run_on_the_end_of_what_is_compared(
    prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(
        texts=(str(prose),), cells=("gru",), seeds=2, steps=1, hidden=5, batch_size=3, bptt=11
    )
    events = compare(tmp_path, plan, device=torch.device("cpu"), command="")
    first, second = (event for event in events if isinstance(event, RunResult))
    better = replace(second, valid_nats_per_char=(first.valid_nats_per_char or 0.0) - 1)
    monkeypatch.setattr("charrnn.views.portrait.SAMPLE", replace(SAMPLE, length=3))
    monkeypatch.setattr(
        "charrnn.views.portrait.InspectConfig", partial(InspectConfig, characters=150)
    )
    loaded, recorded = mock.Mock(wraps=load_model), mock.Mock(wraps=recorded_part)
    inspected = mock.Mock(return_value=None)
    monkeypatch.setattr("charrnn.views.portrait.load_model", loaded)
    monkeypatch.setattr("charrnn.views.portrait.recorded_part", recorded)
    monkeypatch.setattr("charrnn.views.portrait.inspect", inspected)
    portray_comparison(Comparison.of(plan, [first, better]))
    assert loaded.call_args.args[0] == tmp_path / "gru-seed2" / "best.safetensors"
    assert recorded.call_args.args[1] == "test"
    assert inspected.call_args.args[1].text == prose.read_text()[-150:]


def test_a_portrait_shows_the_beginning_of_a_text_and_the_log(
    prose: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.views.portrait.SAMPLE", replace(SAMPLE, length=3))
    model, vocabulary, checkpoint = load_model(trained, torch.device("cpu"))
    part = scan([str(prose)], "utf-8").part(7, 3007)
    windows = prices(model, part, vocabulary, window=47)
    with mock.patch("charrnn.views.portrait.prices", return_value=windows):
        drawn = portray("x", checkpoint, model, vocabulary, part)
    assert next(windows).position == 800, "no more is read than is shown"
    assert [character for character, _ in drawn.excerpt] == [*prose.read_text()[7:807]]
    nats = next(prices(model, part, vocabulary)).nats_T
    assert [price for _, price in drawn.excerpt][:9] == [0.0, *nats[:8]]
    assert (drawn.label, drawn.run.shape) == ("x", model.config)
    assert drawn.log == read_log(trained)
    assert not drawn.run.of_bytes
    assert drawn.run.config == checkpoint.record("training", TrainConfig)
    assert drawn.run.progress.step > 0
    _, _, moved = load_model(
        Path(shutil.copy(trained / "best.safetensors", tmp_path)), torch.device("cpu")
    )
    assert portray("x", moved, model, vocabulary, part.first(9)).log == ()


def test_a_portrait_of_a_model_of_bytes_shows_what_its_text_is_made_of(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also carriage returns that no line feed follows."""
    monkeypatch.setattr("charrnn.views.portrait.SAMPLE", replace(SAMPLE, length=3))
    part = make_part(tmp_path, "é\rb\r\nc\r".encode(), "bytes")
    model = make_model("gru", layers=1, vocabulary=256).float()
    _, _, checkpoint = load_model(trained, torch.device("cpu"))
    drawn = portray("x", checkpoint, model, Vocabulary.of_bytes(), part, inspection())
    assert drawn.run.of_bytes
    assert [character for character, _ in drawn.excerpt] == [*"é␍b\nc␍"]
    assert "é␍b↵\nc␍" in check(inspection_page(drawn, "", ORIGIN)).texts["pre"]


def test_a_sample_is_drawn_on_the_cpu_as_by_its_command(
    prose: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another device, here "meta", would round differently and so draw another text."""
    model, vocabulary, checkpoint = load_model(trained, torch.device("cpu"))
    part, drawn_with = scan([str(prose)], "utf-8").part(0, 9), []
    checkpoint.meta["training"]["precision"] = "bf16"

    def drawn(model: CharModel, _1: object, _2: object, config: SampleConfig) -> list[Drawn]:
        drawn_with.append((model.device.type, config))
        return []

    monkeypatch.setattr("charrnn.storage.trained.recurs_in_bf16", lambda _: True)
    monkeypatch.setattr("charrnn.inference.sampling.why_none", lambda *_: None)
    monkeypatch.setattr("charrnn.views.portrait.sample", drawn)
    monkeypatch.setattr("charrnn.views.portrait.prices", lambda *_: [Prices(1, np.zeros(8), 0)])
    monkeypatch.setattr(CharModel, "cpu", lambda model: model.to_empty(device="cpu"))
    for device in ("cpu", "meta"):
        portray("x", checkpoint, model.to(device), vocabulary, part)
        assert model.device.type == device, "the model stays on its device"
    assert drawn_with == [("cpu", replace(SAMPLE, weights="bf16"))] * 2


def test_a_portrait_without_a_sample_names_the_checkpoint(prose: Path, trained: Path) -> None:
    """A sample may meet predictions that the text does not."""
    model, vocabulary, checkpoint = load_model(trained, torch.device("cpu"))
    part = scan([str(prose)], "utf-8").part(0, 9)
    for weight in model.state_dict().values():
        weight.copy_(weight.sign() * 3e38)
    named = re.escape(str(trained)) + ": the model's predictions are not finite: "
    with (
        mock.patch("charrnn.views.portrait.prices", return_value=[Prices(1, np.zeros(8), 0)]),
        pytest.raises(NonFiniteError, match=named),
    ):
        portray("x", checkpoint, model, vocabulary, part)


def test_a_portrait_has_the_unit_that_was_asked_for_or_the_first_found(
    prose: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn.views.portrait.SAMPLE", replace(SAMPLE, length=3))
    model, vocabulary, checkpoint = load_model(trained, torch.device("cpu"))
    subject: Any = SimpleNamespace(
        path=trained, checkpoint=checkpoint, model=model, vocabulary=vocabulary
    )
    part = scan([str(prose)], "utf-8").whole.first(200)
    stretch = read_stretch(part, vocabulary)

    def shown(seen: Inspection) -> Activation | None:
        drawn = portray_inspected(subject, part, stretch, seen)
        assert drawn.label == "trained"
        assert drawn.inspection is not None
        return drawn.inspection.activation

    found = shown(inspection(activation=None))
    assert found == activation(model, stretch, Unit(1, 3, "c"))
    assert shown(inspection()) == inspection().activation
    assert shown(inspection(activation=None, units=())) is None


def test_checkpoints_of_a_run_share_its_log(
    trained: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is still training, so that its log has grown by the second reading."""
    logs = [[{"step": 10}], [{"step": 10}, {"step": 20}]]
    monkeypatch.setattr("charrnn.views.portrait.SAMPLE", replace(SAMPLE, length=3))
    monkeypatch.setattr("charrnn.views.portrait.read_log", lambda folder: logs.pop(0))
    source, paths = TextSource(texts=(str(prose),)), [trained, trained / "last.safetensors"]
    subjects = load_subjects(paths, source, torch.device("cpu"), tell=lambda said: None)
    best, last = portray_subjects(subjects)
    assert len(best.log) > 0
    assert best.log is last.log


def test_the_history_says_what_cut_the_gradient(trained: Path) -> None:
    _, _, checkpoint = load_model(trained, torch.device("cpu"))
    plain = replace(checkpoint.record("training", TrainConfig), clip_norm=None)
    for cuts in ((0.5, None, None), (None, 0.5, None), (None, None, 0.5)):
        norm, value, scale = cuts
        training = replace(plain, clip_norm=norm, clip_value=value, scale_norm=scale)
        history = clipping(read_log(trained), training)
        assert history is not None
        assert (history.clip_norm, history.clip_value, history.scale_norm) == cuts


def test_labels_of_different_checkpoints_are_different(tmp_path: Path) -> None:
    for name in ("a/run", "b/run", "run-with-a-very-long-name-of-40-letters"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/run/last.safetensors").touch()
    paths = [tmp_path / "a/run", tmp_path / "b/run", tmp_path / "a/run/last.safetensors"]
    assert labels(paths) == ["a/run", "b/run", "run/last"]
    assert labels([*paths[:2], tmp_path / "b/run"]) == ["a/run", "b/run", "b/run"]
    assert labels([Path("/a/b/run"), Path("/c/b/run")]) == ["run", "run 2"]
    assert labels(paths[1:]) == ["run", "run/last"]
    assert labels([Path("/"), Path("/run")]) == ["", "run"]
    assert labels([tmp_path / "a/run/.."]) == ["a"]
    long = "run-with-a-very-long-name-of-40-letters"
    assert labels([tmp_path / long]) == [long]
    assert labels([Path("a\nb\tc")]) == ["a b c"]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["tinyshakespeare-lstm", "", "b"], ["tinyshakespeare-lstm", "", "b"]),
        (["run-with-a-very-long-name-of-40-letters"], ["run-with-a-…f-40-letters"]),
        (["红楼梦与石头记之名红楼梦-lstm"], ["红楼梦与石…红楼梦-lstm"]),
        (
            ["b", *(f"runs-of-today-hidden-{n}-of-all-cells" for n in (128, 256))],
            ["b", "…128-of-all-cells", "…256-of-all-cells"],
        ),
        (
            [f"runs-of-today-hidden-{n}-and-of-all-the-cells" for n in (128, 256)],
            ["…128-and-of…ll-the-cells", "…256-and-of…ll-the-cells"],
        ),
        (
            [f"{n}runs-of-today-hidden-{m}-and-of-all-cells" for n, m in ("ax", "ay", "bx")],
            ["…aruns-of-t…of-all-cells", "…aruns-of-t…of-all-cells 2", "…bruns-of-t…of-all-cells"],
        ),
    ],
)
def test_names_in_a_figure_are_short_and_all_different(names: list[str], short: list[str]) -> None:
    assert shortened([*names, *names]) == dict(zip(names, short, strict=True))
