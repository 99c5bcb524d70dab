"""R14: changed text, vocabulary, model or format is refused on resume, and the field is named."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import charrnn.runs.training
import charrnn.storage.checkpoint
from charrnn import __version__
from charrnn.compute.processor import processor
from charrnn.config import ModelConfig, TrainConfig
from charrnn.errors import CharrnnError, CheckpointError, CorpusError, RunFolderError
from charrnn.runs.resuming import resume
from charrnn.runs.run import Progress
from charrnn.runs.schedule import Schedule
from charrnn.storage.checkpoint import Checkpoint, load, read_description, save
from charrnn.storage.reading import TextRecord
from charrnn.storage.runfolder import RunFolder
from charrnn.storage.trained import load_model
from charrnn.wording import duration
from tests.conftest import Result, give_memory, make_prose, run_cli
from tests.reliability.conftest import Promise
from tests.reliability.runs import CPU, begin, drive, rows, stopped

pytestmark = pytest.mark.usefixtures("short_samples")


@pytest.fixture(scope="module")
def original(tale: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at step 13, between two validations. Read only.

    Its options name the values that rules would otherwise derive from the plan.
    """
    path = tmp_path_factory.mktemp("original") / "run"
    model = {"dropout": 0.2, "weight_drop": 0.1}
    given: dict[str, Any] = {"model": model, "weight_decay": 0.1, "loss_temperature": 0.9}
    with RunFolder.create(path) as folder:
        drive(begin(folder, tale, **given), lambda run: run.progress.step == 13)
    return path


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy of the original run."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def rewrite(run: Path, **changes: Any) -> None:
    """Change a run's last checkpoint and sign it anew, so that it is valid."""
    file = run / "last.safetensors"
    save(file, replace(load(file), **changes))


def refusal(run: Path, *options: object) -> str:
    """Resume a run that must be refused; return the line that says why."""
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.name != "lock"}
    result = run_cli("train", *options, "--run", run, "--resume", "--quiet")
    assert result.out == "" and result.err.count("\n") == 1, result
    assert result.err.startswith("charrnn: ") and len(result.err) < 600
    assert "fault in charrnn" not in result.err
    assert result.code in (1, 2)
    after = {file.name: file.read_bytes() for file in run.iterdir() if file.name != "lock"}
    assert after == before, "a refused run must stay as it is"
    return result.err


# The text ------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["other", "longer", "shorter", "missing"])
def test_another_text(tmp_path: Path, promise: Promise, change: str) -> None:
    text = tmp_path / "my text.txt"
    old = make_prose(400)
    text.write_text(old)
    with RunFolder.create(tmp_path / "run") as folder:
        drive(begin(folder, text), lambda run: run.progress.step == 13)
    new = {"other": old[::-1], "longer": old + "x", "shorter": old[:-1], "missing": None}[change]
    text.unlink()
    if new is not None:
        text.write_text(new)
    said = refusal(tmp_path / "run")
    assert "my text.txt" in said
    if new is not None:
        assert "is not the one this run was started on" in said
    text.write_text(old)
    assert run_cli("train", "--run", tmp_path / "run", "--resume", "--steps", 14).code == 0
    promise("R14", "a text that is changed: refused, named", change)


def test_another_text_to_validate_on(tmp_path: Path, tale: Path, promise: Promise) -> None:
    valid = tmp_path / "held out.txt"
    valid.write_text("the river runs and sings")
    with RunFolder.create(tmp_path / "run") as folder:
        drive(begin(folder, tale, valid=valid), lambda run: run.progress.step == 13)
    valid.write_text("the river sings and runs")
    said = refusal(tmp_path / "run")
    assert "the validation text" in said and "held out.txt" in said
    promise("R14", "a text that is changed: refused, named", "to validate on")


def test_a_text_to_validate_on_where_there_was_none(run: Path, tale: Path) -> None:
    assert "this run has no separate text to validate on" in refusal(run, "--valid", tale)


def test_a_file_that_appears_in_the_folder(tmp_path: Path, promise: Promise) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text(make_prose(200))
    (texts / "b.txt").write_text(make_prose(200, seed=2))
    (texts / "d.txt").write_text(make_prose(200))  # the same text as the first: both count
    with RunFolder.create(tmp_path / "run") as folder:
        drive(begin(folder, texts), lambda run: run.progress.step == 13)
    (texts / "c.txt").write_text("one more")
    changed = f"(4 files, of which new or changed: {texts}/c.txt)"
    assert changed in refusal(tmp_path / "run")
    scored = run_cli("evaluate", tmp_path / "run", "--part", "valid")
    assert (scored.code, changed in scored.err) == (1, True)
    (texts / "a.txt").write_text("another")
    assert f"new or changed: {texts}/a.txt and 1 more)" in refusal(tmp_path / "run")
    (texts / "a.txt").write_text(make_prose(200))
    (texts / "c.txt").unlink()
    b = (texts / "b.txt").rename(texts / "c.txt")
    assert "step 13" in run_cli("train", "--run", tmp_path / "run", "--resume").err
    b.rename(texts / "0.txt")
    assert "(3 files, in another order) is not the one" in refusal(tmp_path / "run")
    (texts / "e.txt").write_text(make_prose(200))
    assert f"(4 files, of which new or changed: {texts}/e.txt)" in refusal(tmp_path / "run")
    (texts / "e.txt").unlink()
    (texts / "d.txt").unlink()
    assert "(2 files, without 1 of the files it had)" in refusal(tmp_path / "run")
    promise("R14", "a text that is changed: refused, named", "a file more in its folder")


# Options that a resumed run cannot have --------------------------------------------

OTHERS = {
    "--cell": "gru", "--layers": 3, "--hidden": 9, "--embedding": 6, "--dropout": 0.3,
    "--weight-drop": 0.3, "--dropout-masks": 3, "--loss-temperature": 0.3, "--batch-size": 2,
    "--bptt": 6, "--loss-last": 4, "--reset-state": True, "--optimiser": "sgd",
    "--weight-decay": 0.3, "--clip-norm": 3, "--clip-value": 3, "--scale-norm": 3,
    "--validate-every": 7, "--encoding": "latin-1", "--min-count": 3, "--seed": 3,
    "--precision": "bf16",
}  # fmt: skip


@pytest.mark.parametrize("flag", OTHERS)
def test_options_that_stay_as_they_were(run: Path, promise: Promise, flag: str) -> None:
    value = OTHERS[flag]
    said = refusal(run, flag, *(() if value is True else (value,)))
    assert said.startswith(f"charrnn: {flag} {value}: the run was started with ")
    promise("R14", "options that would change the run: refused, named", flag)


def test_all_options_that_differ_are_named_with_what_the_run_has(run: Path) -> None:
    said = refusal(run, "--hidden", 9, "--layers", 2, "--clip-norm", 0, "--bptt", 6)
    has = load(run / "last.safetensors").record("training", TrainConfig)
    differ = "--hidden 9, --bptt 6 and --clip-norm 0"
    assert has.clip_norm == 1
    assert f"{differ}: the run was started with 8, {has.bptt} and 1, and keeps that" in said


def test_a_zero_that_the_run_has_is_told(tmp_path: Path, tale: Path) -> None:
    run = tmp_path / "run"
    with RunFolder.create(run) as folder:
        drive(begin(folder, tale, seed=0), lambda run: run.progress.step == 1)
    said = refusal(run, "--seed", 7, "--reset-state")
    assert "--reset-state True and --seed 7: the run was started with none and 0, and" in said


def test_what_the_run_has_may_be_said_again(run: Path) -> None:
    checkpoint = load(run / "last.safetensors")
    model = checkpoint.record("model", ModelConfig)
    training = checkpoint.record("training", TrainConfig)
    has: dict[str, Any] = {**model.to_dict(), **training.to_dict()} | {"encoding": "utf-8"}
    words = []
    for flag in OTHERS:
        value = has.get(flag[2:].replace("-", "_"))
        words += [flag, value] if value and value is not True else []
    assert len(words) > 20
    done = run_cli("train", *words, "--run", run, "--resume", "--steps", 45, "--quiet")
    assert done.without_notes == Result(0, f"{run}\n", "")


@pytest.mark.parametrize("same", [True, False])
def test_what_follows_a_plan_cannot_be_named(run: Path, same: bool) -> None:
    """Not even with its present value, because another budget would change it."""
    meta = load(run / "last.safetensors").meta
    by_plan = dict.fromkeys(("dropout_by_plan", "decay_by_plan", "temperature_by_plan"), True)
    has = {**meta["model"], **meta["training"]}
    rewrite(run, meta={**meta, "training": {**meta["training"], **by_plan}})
    names = ("dropout", "weight_drop", "weight_decay", "loss_temperature")
    words = [
        word
        for name in names
        for word in (f"--{name.replace('_', '-')}", has[name] if same else 0.3)
    ]
    why = "the run was started without {0}, so its plan sets {0}: leave {0} out"
    what = "--dropout, --weight-drop, --weight-decay and --loss-temperature"
    assert refusal(run, *words) == f"charrnn: {what}: {why.format('them')}\n"
    said = f"may change); --dropout: {why.format('it')}"
    assert said in refusal(run, "--hidden", 9, *words[:2])


def test_none_may_be_said_again_as_it_was_said(tmp_path: Path, tale: Path) -> None:
    run = tmp_path / "run"
    with RunFolder.create(run) as folder:
        started = begin(folder, tale, clip_norm=0, weight_decay=0)
        drive(started, lambda run: run.progress.step == 1)
    assert (started.config.clip_norm, started.config.weight_decay) == (None, 0)
    assert "--clip-norm 3: the run was started with none," in refusal(run, "--clip-norm", 3)
    words = ["--clip-norm", 0, "--weight-decay", 0, "--steps", 2]
    assert run_cli("train", "--run", run, "--resume", *words).code == 0


def test_what_a_new_run_made_of_an_option_may_be_said_again(tmp_path: Path) -> None:
    """Another name of the encoding; more lanes of windows than the text has room for."""
    text, run = tmp_path / "text", tmp_path / "run"
    text.write_bytes(make_prose(300).encode("latin-1"))
    words = ["--encoding", "Latin-1", "--batch-size", 99, "--bptt", 64, "--loss-last", 64]
    words += ["--valid-share", 0, "--hidden", 8, "--run", run]
    assert run_cli("train", text, *words, "--steps", 1).code == 0
    has = load(run / "last.safetensors").record("training", TrainConfig)
    assert (has.batch_size, has.bptt, has.loss_last) == (4, 64, 64)
    del words[words.index("--valid-share") :]
    done = run_cli("train", *words, "--run", run, "--resume", "--steps", 2, "--quiet")
    assert done.without_notes == Result(0, f"{run}\n", "")
    for steps, is_another in ((3, True), (4, False)):
        done = run_cli("train", "--run", run, "--resume", "--lr", 0.5, "--steps", steps)
        assert ("--lr 0.5 (was" in done.err) == is_another
    said = refusal(run, "--encoding", "utf-8", "--batch-size", 3)
    assert "--batch-size 3 and --encoding utf-8: the run was started with 4 and iso8859-1" in said


def test_what_counts_may_be_said_again_without_the_window(tmp_path: Path, tale: Path) -> None:
    """The given value may exceed a new run's default window."""
    run = tmp_path / "run"
    with RunFolder.create(run) as folder:
        started = begin(folder, tale, bptt=300, loss_last=200, batch_size=2)
        drive(started, lambda run: run.progress.step == 1)
    words = ["--loss-last", 200, "--steps", 2]
    again = run_cli("train", "--run", run, "--resume", *words)
    assert again.code == 0, again.err
    assert "--loss-last must be a whole number from 1 " in refusal(run, "--loss-last", 0)
    said = refusal(run, "--loss-last", 150)
    assert "--loss-last 150: the run was started with 200" in said


@pytest.mark.parametrize(
    ("flag", "value"), [("--valid-share", 0.3), ("--test-share", 0.3), ("--init-from", "x")]
)
def test_the_text_is_divided_and_the_weights_are_there(
    run: Path, promise: Promise, flag: str, value: object
) -> None:
    said = refusal(run, flag, value)
    assert said.startswith(f"charrnn: {flag} ")
    assert ": the run was started with " in said and ", and keeps that (" in said
    promise("R14", "options that would change the run: refused, named", flag)


def test_the_same_command_goes_on_with_a_larger_budget(tmp_path: Path, tale: Path) -> None:
    first, run = tmp_path / "first", tmp_path / "run"
    small = ["--batch-size", 3, "--bptt", 7]
    assert run_cli("train", tale, "--run", first, "--hidden", 8, *small, "--steps", 5).code == 0
    words = [tale, "--run", run, "--init-from", first, *small, "--valid-share", 0.15]
    words += ["--test-share", 0.05]
    assert run_cli("train", *words, "--steps", 5).code == 0
    again = run_cli("train", *words, "--steps", 6, "--resume")
    assert again.code == 0, again.err
    assert rows(run)[-1]["step"] == 6
    said = refusal(run, "--valid-share", 0.2, "--init-from", run)
    assert said.startswith(
        f"charrnn: --valid-share 0.2 and --init-from {run}: the run was started with 0.15 and "
        f"{first}, and keeps that ("
    )


def test_the_command_that_goes_on_repeats_what_is_not_saved_yet(
    run: Path, tmp_path: Path, tale: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a full disk: without it, the budget that was given would be lost."""
    moved = shutil.copy(tale, tmp_path / "moved.txt")
    given = ["--steps", "30", "--lr", "0.1234567", "--keep", "3"]
    with monkeypatch.context() as patch:
        full = RunFolderError("no space")
        patch.setattr(RunFolder, "save_last", mock.Mock(side_effect=full))
        said = run_cli("train", moved, "--run", run, "--resume", *given, "--quiet").err
    go_on = said.splitlines()[-1].partition("go on from it with: ")[2]
    assert go_on == shlex.join(
        ["charrnn", "train", str(moved), "--run", str(run), "--resume", *given]
    )
    assert run_cli(*shlex.split(go_on)[1:]).code == 0
    assert (rows(run)[-1]["step"], load(run / "last.safetensors").meta["keep"]) == (30, 3)


def test_of_several_texts_all_must_be_named_again(tmp_path: Path) -> None:
    texts = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for number, text in enumerate(texts):
        text.write_text(make_prose(500, seed=number))
    run, small = tmp_path / "run", ["--hidden", 8, "--batch-size", 3, "--bptt", 7]
    assert run_cli("train", *texts, "--run", run, *small, "--steps", 3).code == 0
    moved = texts[1].rename(tmp_path / "d.txt")
    said = refusal(run, "--steps", 5)
    named = f"charrnn train TEXT --run {run} --resume --steps 5"
    assert said.endswith(f"; if the run's text has moved, name it: {named}\n")
    fewer = refusal(run, texts[0], texts[2])
    assert fewer.startswith("charrnn: the text (2 files, without 1 of the files it had) is not ")
    words = shlex.split(named.replace("TEXT", shlex.join(map(str, (texts[0], moved, texts[2])))))
    assert run_cli(*words[1:]).code == 0


@pytest.mark.parametrize("name", ["\ud800/*", "nul\0/*", "\x1b[2J"])
def test_a_recorded_name_that_no_file_has(run: Path, name: str) -> None:
    meta = load(run / "last.safetensors").meta
    rewrite(run, meta=meta | {"text": meta["text"] | {"texts": [f"/{name}"]}})
    named = f"charrnn train TEXT --run {run} --resume"
    assert refusal(run).endswith(f"; if the run's text has moved, name it: {named}\n")


def test_what_the_plan_sets_is_not_called_none(tmp_path: Path, tale: Path) -> None:
    run = tmp_path / "run"
    with RunFolder.create(run) as folder:
        drive(begin(folder, tale, validate_every=None), lambda run: run.progress.step == 1)
    assert refusal(run, "--validate-every", 5) == (
        "charrnn: --validate-every: the run was started without it, so its plan sets it: leave it "
        "out\n"
    )


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("cell", "gru", "the weight model.cells.0.bias_recurrent is missing"),
        ("vocabulary", 5, "the field 'vocabulary' has 31 symbols, the model 5"),
        ("layers", 1, "the field 'model' has 1 layers, the weights 2"),
        ("layers", 3, "the field 'model' has 3 layers, the weights 2"),
        ("layers", 2**31 - 1, "the field 'model' is not usable: --layers must be a whole "),
        ("hidden", 9, "the weight model.cells.0.bias is torch.float32 [32], the model needs "),
        ("hidden", 2**31 - 1, "the field 'model' is impossible: "),
        ("embedding", 4, "the weight model.cells.0.weight_input is torch.float32 [32, 5], "),
        ("embedding", 2**31 - 1, "the weight model.cells.0.weight_input is torch.float32 [32, 5]"),
    ],
)
def test_another_model(run: Path, promise: Promise, field: str, value: Any, says: str) -> None:
    """The description does not fit the weights; nothing of the described size is allocated."""
    meta = load(run / "last.safetensors").meta
    rewrite(run, meta={**meta, "model": {**meta["model"], field: value}})
    assert refusal(run).startswith(f"charrnn: {run / 'last.safetensors'}: {says}")
    promise("R14", "another model in the checkpoint: refused, named", f"{field} {value}")


@pytest.mark.parametrize(
    ("characters", "said"),
    [
        ("", "the field 'vocabulary' has no characters"),
        ("abc", "the field 'vocabulary' has 4 symbols, the model 31"),
        ("ba", "the field vocabulary.characters are not in ascending order, each once"),
        ("a\ud800", "the field vocabulary.characters has surrogates"),
        (None, "the field 'vocabulary' is not that of the run's text"),
    ],
)
def test_another_vocabulary(run: Path, promise: Promise, characters: str | None, said: str) -> None:
    """None: as many characters, but others."""
    meta = load(run / "last.safetensors").meta
    if characters is None:
        known = meta["vocabulary"]["characters"]
        characters = known[:-1] + chr(ord(known[-1]) + 1)
    vocabulary = {**meta["vocabulary"], "characters": characters}
    rewrite(run, meta={**meta, "vocabulary": vocabulary})
    assert refusal(run) == f"charrnn: {run / 'last.safetensors'}: {said}\n"
    promise("R14", "another vocabulary in the checkpoint: refused, named", repr(characters))


def test_a_name_in_a_description_cannot_steer_the_terminal(run: Path) -> None:
    meta = load(run / "last.safetensors").meta
    rewrite(run, meta=meta | {"vocabulary": meta["vocabulary"] | {"\x1b[2J\n": 1}})
    assert refusal(run).endswith(r": the field vocabulary.\x1b[2J\n is unknown" + "\n")


def test_a_model_of_one_symbol(run: Path, promise: Promise) -> None:
    """The description fits its weights, but the model has no character to produce."""
    whole = load(run / "last.safetensors")
    tensors = dict(whole.tensors)
    for name in ("model.embedding.weight", "model.head.weight", "model.head.bias"):
        tensors[name] = tensors[name][:1].clone()
    model = {**whole.meta["model"], "vocabulary": 1}
    vocabulary = {**whole.meta["vocabulary"], "characters": ""}
    rewrite(run, tensors=tensors, meta={**whole.meta, "model": model, "vocabulary": vocabulary})
    file = run / "last.safetensors"
    said = f"charrnn: {file}: the field 'vocabulary' has no characters\n"
    assert run_cli("sample", file, "--length", 3) == Result(1, "", said)
    assert refusal(run) == said
    promise("R14", "another vocabulary in the checkpoint: refused, named", "'', and weights to fit")


def test_another_format(run: Path, promise: Promise, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(charrnn.storage.checkpoint, "FORMAT", 2)
        file = run / "last.safetensors"
        patch.setattr(charrnn.storage.checkpoint, "__version__", "7.1.2")
        save(file, Checkpoint({}, {"step": 13}))
    said = refusal(run)
    assert "written by charrnn '7.1.2' in format 2" in said
    promise("R14", "another format: refused, named, with the version that wrote it", "2")


RECORDS: dict[str, type[Any]] = {
    "model": ModelConfig, "training": TrainConfig, "progress": Progress, "text": TextRecord,
}  # fmt: skip


@pytest.mark.parametrize("record", RECORDS)
def test_each_field_of_a_wrong_type(run: Path, promise: Promise, record: str) -> None:
    meta = load(run / "last.safetensors").meta
    for field in fields(RECORDS[record]):
        rewrite(run, meta={**meta, record: {**meta[record], field.name: {"no": "such"}}})
        said = refusal(run)
        assert f"the field {record!r} is not usable: {field.name!r} cannot be" in said
    figure = f"{record} {len(fields(RECORDS[record]))}"
    promise("R14", "fields of the checkpoint with a value of another type: each named", figure)


#: Fields that have a default and yet must not be missing, and the message if they are.
NEEDED = {
    "steps": "give one budget",
    "seconds": "validation_seconds is ",
    "row_characters": "row_characters is 0",
    "best_nats": "best_nats is None, and best_step ",
    "best_step": "best_nats is ",
}


@pytest.mark.parametrize("record", RECORDS)
def test_fields_that_are_missing_or_unknown(run: Path, record: str) -> None:
    meta = load(run / "last.safetensors").meta
    optional = {field.name for field in fields(RECORDS[record]) if field.default is not MISSING}
    for name in meta[record]:
        kept = {key: value for key, value in meta[record].items() if key != name}
        rewrite(run, meta={**meta, record: kept})
        if name in optional - NEEDED.keys():
            # The run is at step 13 already: a row and a checkpoint are written, without an update.
            result = run_cli("train", "--run", run, "--resume", "--steps", 13, "--quiet")
            assert result.without_notes == Result(0, f"{run}\n", ""), name
        else:
            why = NEEDED.get(name, f"{name!r} is missing")
            assert f"the field {record!r} is not usable: {why}" in refusal(run)
    rewrite(run, meta={**meta, record: {**meta[record], "colour": "red"}})
    unknown = f"the field {record!r} is not usable: 'colour' is unknown"
    assert refusal(run).endswith(f"{unknown}\n")
    rewrite(run, versions={**load(run / "last.safetensors").versions, "charrnn": "7.1.2"})
    why = f"; it was written by charrnn '7.1.2', and this is {charrnn.__version__}"
    assert refusal(run).endswith(f"{unknown}{why}\n")


@pytest.mark.parametrize(
    "name", ["model", "vocabulary", "training", "progress", "text", "keep", "device", "threads"]
)
def test_whole_records_that_are_missing(run: Path, name: str) -> None:
    meta = load(run / "last.safetensors").meta
    rewrite(run, meta={key: value for key, value in meta.items() if key != name})
    assert f"lacks the field {name!r}" in refusal(run)
    rewrite(run, meta={**meta, name: ["of no such kind"]})
    assert f"field {name!r}" in refusal(run)


def test_each_tensor(run: Path, promise: Promise) -> None:
    checkpoint = load(run / "last.safetensors")
    unnamed = set()
    for name, tensor in checkpoint.tensors.items():
        others = {key: value for key, value in checkpoint.tensors.items() if key != name}
        short = name.removeprefix("optimiser.")
        for wrong in (None, tensor.flatten()[:-1], tensor[None].repeat(2, *[1] * tensor.dim())):
            rewrite(run, tensors=others if wrong is None else {**others, name: wrong})
            if short not in refusal(run):
                unnamed.add(name)
    what, count = "tensors missing or of another shape: each named", len(checkpoint.tensors)
    promise("R14", what, f"{count - len(unnamed)} of {count}")
    assert not unnamed
    rewrite(run, tensors={**checkpoint.tensors, "model.extra": torch.zeros(3)})
    assert "the weight model.extra is unknown" in refusal(run)
    others = {**checkpoint.tensors}
    shape = list(others.pop("hidden.0.h").shape)
    rewrite(run, tensors=others)
    assert "not usable: hidden.0.h is missing\n" in refusal(run)
    rewrite(run, tensors={**others, "hidden.0.h": torch.zeros(2, 3)})
    assert f"not usable: hidden.0.h is [2, 3], the run needs {shape}\n" in refusal(run)


# Anything at all in a description ----------------------------------------------------

ODD: list[Any] = [
    None, True, -1, 0, 1, 2, 3.5, 1e308, 10**30, "", "x", [], [1, 2], [3, 1], {}, {"x": 1}
]  # fmt: skip


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))


def changed(value: Any, path: tuple[str, ...], new: Any) -> Any:
    if not path:
        return new
    return {**value, path[0]: changed(value[path[0]], path[1:], new)}


@pytest.mark.slow
def test_anything_in_a_description(run: Path, promise: Promise) -> None:
    """Make each leaf of the description odd: the run is refused in one line, or goes on."""
    file = run / "last.safetensors"
    whole = load(file)
    content = {path: path.read_bytes() for path in run.iterdir() if path.name != "lock"}
    refused = went_on = 0
    flaws = []
    for path in leaves(whole.meta):
        for odd in ODD:
            save(file, replace(whole, meta=changed(whole.meta, path, odd)))
            torch.manual_seed(1)
            try:
                with RunFolder.open_existing(run) as folder:
                    resuming = resume(folder, device=CPU, changes={})
                    start = resuming.progress.step
                    drive(resuming, lambda r: r.progress.step >= start + 3)  # noqa: B023
                went_on += 1
            except Exception as error:
                one_line = "\n" not in str(error) and len(str(error)) < 500
                if isinstance(error, CharrnnError) and one_line:
                    refused += 1
                else:
                    flaws.append((path, odd, error))
            for name, data in content.items():
                name.write_bytes(data)
    what = "descriptions with an odd value: refused in one line, or of no harm"
    total = refused + went_on + len(flaws)
    promise("R14", what, f"{refused:,} and {went_on:,} of {total:,}")
    assert not flaws
    assert refused > went_on


def test_a_hostile_description_takes_no_memory(run: Path) -> None:
    """The description is compared with the weights before anything of its size is allocated."""
    meta = load(run / "last.safetensors").meta
    for field, value in (("hidden", 2**31 - 1), ("hidden", 10**6), ("layers", 2**31 - 1)):
        rewrite(run, meta={**meta, "model": {**meta["model"], field: value}})
        with pytest.raises(CheckpointError, match="model"):
            load_model(run / "last.safetensors", CPU)
    hidden = {"batch_size": 2**31 - 1}
    rewrite(run, meta={**meta, "training": {**meta["training"], **hidden}})
    assert "'text' is not usable" in refusal(run)


# Finished runs, and runs that are given more -------------------------------------------


def test_a_finished_run_says_so(run: Path) -> None:
    assert run_cli("train", "--run", run, "--resume").code == 0
    log = (run / "metrics.jsonl").read_bytes()
    files = {file: file.read_bytes() for file in run.iterdir()}
    seconds = load(run / "last.safetensors").meta["progress"]["seconds"]
    said = (
        f"{run}: finished already, after 44 steps and {duration(seconds)}: "
        "give a larger --minutes, --epochs or --steps to go on\n"
    )
    assert run_cli("train", "--run", run, "--resume") == Result(0, f"{run}\n", said)
    # Its own budget may be repeated, also as the same number of updates in epochs.
    for budget in (["--steps", 44], ["--epochs", 44 / 17], ["--lr", 0.5]):
        assert run_cli("train", "--run", run, "--resume", *budget) == Result(0, f"{run}\n", said)
    assert "--steps 30: 44 are done already" in refusal(run, "--steps", 30, "--lr", 0.5)
    assert (run / "metrics.jsonl").read_bytes() == log
    assert {file: file.read_bytes() for file in run.iterdir()} == files
    result = run_cli("train", "--run", run, "--resume", "--json")
    (last,) = [row for row in result.rows if row["event"] == "finished"]
    assert (last["reason"], last["complete"], last["step"]) == ("done", True, 44)


@pytest.mark.parametrize(
    ("flag", "value", "steps"),
    [("--steps", 60, 60), ("--epochs", 4, 68), ("--minutes", None, None)],
)
def test_a_larger_budget_goes_on(
    run: Path, flag: str, value: float | None, steps: int | None
) -> None:
    assert run_cli("train", "--run", run, "--resume").code == 0
    if value is None:  # at most a third of it is used up, however slow the machine
        seconds = read_description(run / "last.safetensors").meta["progress"]["seconds"]
        value = round((3 * seconds + 3) / 60, 4)
    result = run_cli("train", "--run", run, "--resume", flag, value)
    assert result.code == 0
    assert f"the schedule is planned anew for {flag} {value}" in result.err
    assert "(it was --steps 44)" in result.err
    last = rows(run)[-1]["step"]
    assert last == steps if steps else last > 44
    rates = {row["step"]: row["learning_rate"] for row in rows(run) if "learning_rate" in row}
    assert rates[50] > 2 * rates[40], "the rate follows the new plan"


@pytest.mark.parametrize(
    ("flag", "value", "done"),
    [("--steps", 12, "13"), ("--epochs", 0.1, "0.764706"), ("--minutes", 0.5, "1.25")],
)
def test_a_budget_of_less_than_is_done_is_refused(
    run: Path, flag: str, value: float, done: str
) -> None:
    meta = load(run / "last.safetensors").meta
    progress = {**meta["progress"], "seconds": 75.0}
    rewrite(run, meta={**meta, "progress": progress})
    said = f"charrnn: {flag} {value}: {done} are done already: give more\n"
    assert refusal(run, flag, value) == said


def test_a_budget_that_is_used_up_ends_a_run_where_it_is(run: Path) -> None:
    """The row logged at the end has the rate that its updates really had."""
    config = load(run / "last.safetensors").record("training", TrainConfig)
    result = run_cli("train", "--run", run, "--resume", "--steps", 13, "--lr", 9)
    assert result.code == 0
    assert "done after 13 steps" in result.err
    (last,) = [row for row in rows(run) if row["step"] == 13 and "learning_rate" in row]
    rate = config.lr * Schedule(config.warmup_steps, config.steps).factor(12)
    assert last["learning_rate"] == rate


@pytest.mark.parametrize("option", ["--steps", "--patience"])
@pytest.mark.parametrize("as_json", [False, True])
def test_an_option_that_ends_a_run_at_a_validation_is_kept(
    tmp_path: Path, tale: Path, option: str, as_json: bool
) -> None:
    """No update or validation is left to do, but the checkpoint does not say so yet."""
    run = tmp_path / "run"
    step = stopped(run, tale, lambda it: it.progress.validations_since_best == 1, lr=3.0)
    assert go_on_of(run) is not None
    value = step if option == "--steps" else 1
    json_too = ["--json"] if as_json else []
    result = run_cli("train", "--run", run, "--resume", option, value, *json_too)
    assert result.code == 0
    assert "finished already" not in result.err
    assert ('"complete": true' if as_json else f"after {step} steps") in result.out + result.err
    assert go_on_of(run) is None
    # Else evaluate would take it for a run that was given so few steps at once.
    planned_at = load(run / "last.safetensors").meta["progress"]["planned_at_step"]
    assert planned_at == (step if option == "--steps" else 0)
    assert "finished already" in run_cli("train", "--run", run, "--resume").err
    assert rows(run)[-1]["step"] == step


def go_on_of(run: Path) -> str | None:
    """Return the command that continues a run, as ``inspect`` says it."""
    found: str | None = json.loads(run_cli("inspect", run, "--json").out)["go_on"]
    return found


def test_a_run_that_ran_out_of_patience(tmp_path: Path, tale: Path) -> None:
    run = tmp_path / "run"
    with RunFolder.create(run) as folder:
        drive(begin(folder, tale, patience=2, lr=3.0, budget={"steps": 400}))
    over = rows(run)[-1]["step"]
    assert over < 400
    for budget in ([], ["--steps", 900]):
        result = run_cli("train", "--run", run, "--resume", *budget)
        assert result.err.startswith(f"{run}: finished already, after {over} steps and ")
        assert result.err.endswith(" s: give a larger --patience to go on\n")
        result = run_cli("train", "--run", run, "--resume", *budget, "--lr", 0.1, "--json")
        started, finished = map(json.loads, result.out.splitlines())
        assert (started["event"], finished["event"]) == ("started", "finished")
        assert not [note for note in started["notes"] if "--lr" in note or "--steps" in note]
    assert run_cli("train", "--run", run, "--resume", "--patience", 3).code == 0
    assert rows(run)[-1]["step"] > over


def test_a_run_that_ran_out_of_patience_and_steps(tmp_path: Path, tale: Path) -> None:
    """It did all its steps, so it did not stop early; and it needs more of both."""
    first, run = tmp_path / "first", tmp_path / "run"
    with RunFolder.create(first) as folder:
        drive(begin(folder, tale))
    words = ("--run", run, "--init-from", first, "--lr", 30, "--steps", 3, "--patience", 1)
    done = run_cli("train", tale, *words, "--validate-every", 3)
    assert "done after 3 steps" in done.err
    assert "no update improved on the weights" in done.err
    assert "done after 3 steps" in run_cli("inspect", run).out
    again = ("train", "--run", run, "--resume")
    assert run_cli(*again).err.endswith(
        " s: give a larger --patience and a larger --minutes, --epochs or --steps to go on\n"
    )
    assert "a larger --patience to go on" in run_cli(*again, "--steps", 5).err
    assert "larger --minutes, --epochs or --steps to go on" in run_cli(*again, "--steps", 3).err
    assert "done after 5 steps" in run_cli(*again, "--steps", 5, "--patience", 2).err


def test_standard_input_says_at_once_that_it_cannot_be_read_again(
    tmp_path: Path, tale: Path
) -> None:
    run = tmp_path / "run"
    options = ["--hidden", 8, "--batch-size", 3, "--bptt", 7]
    text = tale.read_bytes()
    result = run_cli("train", "-", "--run", run, "--steps", 5, *options, stdin=text)
    assert result.code == 0
    assert "standard input cannot be read again: to resume, give the text as a file" in result.err
    go_on = f"charrnn train TEXT --run {shlex.quote(str(run))} --resume"
    assert f"a file: {go_on}" in refusal(run)
    again = ["train", "--run", run, "--resume", "--steps"]
    assert run_cli(*again, 6, "-", stdin=text).code == 0
    assert "is not the one" in run_cli(*again, 7, "-", stdin=b"another text").err
    assert run_cli(*again, 7, tale).code == 0
    assert run_cli(*again, 8).code == 0
    assert rows(run)[-1]["step"] == 8


def test_what_is_kept_anew_of_a_finished_run_is_all_that_changes(run: Path) -> None:
    """The GPU's random state survives a visit to a machine without a GPU."""
    last = run / "last.safetensors"
    assert run_cli("train", "--run", run, "--resume").code == 0
    whole = load(last)
    state = {**whole.tensors, "generator.cuda": torch.arange(16, dtype=torch.uint8)}
    rewrite(run, tensors=state, meta={**whole.meta, "device": "cuda", "threads": 64})
    before = load(last)
    for keep in ([], ["--keep", 1]):
        written = last.stat()
        assert run_cli("train", "--run", run, "--resume", "--device", "cpu", *keep).code == 0
        assert last.stat() == written, "nothing has changed"
    assert run_cli("train", "--run", run, "--resume", "--device", "cpu", "--keep", 3).code == 0
    after = load(last)
    assert after.tensors.keys() == state.keys()
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in state.items())
    assert after.meta == before.meta | {"keep": 3}
    assert after.versions == before.versions


def test_what_no_longer_fits_is_refused_with_advice_that_can_be_followed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_memory(monkeypatch, 0)
    said = run_cli("train", "--run", run, "--resume")
    assert said.code == 2
    assert "than the 0.0 GB available: continue on a machine with more, or with " in said.err
    # A finished run needs no memory.
    assert run_cli("train", "--run", run, "--resume", "--steps", 13).code == 0


def test_another_machine_is_told(run: Path) -> None:
    checkpoint = load(run / "last.safetensors")
    meta = {**checkpoint.meta, "device": "cuda", "threads": 64, "processor": "a Zilog\x1b[2J Z80"}
    rewrite(run, meta=meta, versions={**checkpoint.versions, "torch": "1.0.0\n"})
    shutil.copytree(run, run.with_name("older"))
    said = run_cli("train", "--run", run, "--resume", "--device", "cpu").err
    changes = (
        f"device cpu (was cuda), threads 1 (was 64), torch {torch.__version__} (was 1.0.0\\n), "
        f"processor {processor()} (was a Zilog\\x1b[2J Z80)"
    )
    assert f"note: {changes}: results may differ in the last bits\n" in said
    # Another version may learn by another rule.
    rewrite(run.with_name("older"), meta=meta, versions={"charrnn": "0.0.9", "torch": "1.0.0\n"})
    said = run_cli("train", "--run", run.with_name("older"), "--resume", "--device", "cpu").err
    changes = f"charrnn {__version__} (was 0.0.9), {changes}"
    assert f"note: {changes}: results may differ in the last bits, or by more\n" in said


# A text that changes while it is read -----------------------------------------------------


def is_written_to(text: Path) -> None:
    with text.open("r+") as file:
        file.write("X")
    os.utime(text, ns=(1, 1))  # some file systems keep only whole seconds


def vanishes(text: Path) -> None:
    text.unlink()


def becomes_a_pipe(text: Path) -> None:
    text.unlink()
    os.mkfifo(text)


@pytest.mark.parametrize("where", ["training", "validation"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (is_written_to, "was written to"),
        (vanishes, "can no longer be read"),
        (becomes_a_pipe, "can no longer be read"),
    ],
)
def test_a_text_that_changes(tmp_path: Path, change: Any, told: str, where: str) -> None:
    text = tmp_path / "big.txt"
    content = make_prose(200_000)
    text.write_text(content)
    run = tmp_path / "run"
    every = 5 if where == "validation" else 10**6
    choices: dict[str, Any] = {"bptt": 512, "validate_every": every, "budget": {"steps": 200}}

    def stop(run: Any) -> bool:
        if run.progress.step == 4 and text.is_file() and text.read_text() == content:
            change(text)
        return False

    with RunFolder.create(run) as folder:
        training = begin(folder, text, **choices)
        with pytest.raises(CorpusError) as caught:
            drive(training, stop)
    said = str(caught.value)
    assert "big.txt" in said and told in said
    step = training.progress.step
    assert step == 5 if where == "validation" else step > 5
    assert f"the run is saved at step {step}, and goes on with: charrnn train" in said
    assert load(run / "last.safetensors").require("step", int) == step
    text.unlink(missing_ok=True)
    text.write_text(content)
    with RunFolder.open_existing(run) as folder:
        goes_on = resume(folder, device=CPU, changes={})
        drive(goes_on, lambda r: r.progress.step == step + 3)
    assert load(run / "last.safetensors").require("step", int) == step + 3
