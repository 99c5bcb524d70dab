"""``inspect`` without a text: what it says of a run, from its checkpoint alone."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from charrnn import __version__
from charrnn.cli import app
from charrnn.command_words import command_line
from charrnn.errors import CheckpointError
from charrnn.layout import BEST, LAST, PLAN
from charrnn.runs.comparison_plan import Plan
from charrnn.runs.status import read_status
from charrnn.storage.checkpoint import load, save
from charrnn.views.run_words import status_lines
from charrnn.views.terminal import print_words, to_json
from tests.conftest import GOLDEN_DATA, SIZES, Cli, Result, documented_fields
from tests.reliability.test_refusals import ODD, changed, leaves

SMALL = (*SIZES, "--precision", "fp32")

Run = Callable[..., Path]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """Copy the trained run's newest checkpoint, with other values in its description."""

    def make(name: str = f"run/{LAST}", **others: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = load(trained / LAST)
        meta = checkpoint.meta
        for field, values in others.items():
            is_record = isinstance(values, dict)
            meta = {**meta, field: {**meta[field], **values} if is_record else values}
        save(path, replace(checkpoint, meta=meta))
        return path

    return make


def unfinished(**changes: Any) -> dict[str, Any]:
    """Return changes that make the run of 150 steps an unfinished run of 200."""
    return {"training": {"steps": 200}, "progress": {"planned_steps": 200}, **changes}


def lines(result: Result) -> list[str]:
    assert (result.code, result.err) == (0, "")
    return result.out.splitlines()


def test_says_which_weights_training_began_with(cli: Cli, run: Run) -> None:
    path = run(training={"init_from": "/models/a b"})  # as older versions recorded it
    found = lines(cli("inspect", path))
    assert found[5].startswith("made    with ")
    assert found[6] == "from    the weights of /models/a b"
    path = run(training={"init_from": "/m", "init_sha256": "\x1b"})
    assert lines(cli("inspect", path))[6] == r"from    the weights of /m, checksum \x1b"
    path = run(training={"init_from": "/models/a b", "init_sha256": "1f"})
    assert lines(cli("inspect", path))[6] == "from    the weights of /models/a b, checksum 1f"


def test_says_what_was_given_anew(cli: Cli, run: Run) -> None:
    changes = [
        {"step": 1200, "was": "--lr 0.028\x1b", "now": "--lr 0.014"},
        {"step": 1201, "was": "", "now": "--patience 9\n"},
    ]
    path = run(changes=changes)
    assert lines(cli("inspect", path))[6:8] == [
        r"changed --lr 0.014 from step 1,200 on (was --lr 0.028\x1b)",
        r"changed --patience 9\n from step 1,201 on (was nothing)",
    ]
    assert json.loads(cli("inspect", path, "--json").out)["changes"] == changes


def test_says_what_train_said(cli: Cli, prose: Path, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    options = ("--epochs", 0.05, "--test-share", 0.2, "--dropout", 0.1, "--loss-last", 4)
    said = cli("train", prose, "--run", run, *options, *SMALL).err.splitlines()
    found = lines(cli("inspect", run))
    assert found[:5] == said[:5]
    assert found[0].endswith(
        "4,204 characters to train on, 601 held out to validate, 1,202 to test"
    )
    meta = load(run / LAST).meta
    machine = f"torch {torch.__version__} and version {__version__} of charrnn"
    assert found[5] == f"made    with {machine}, on {meta['processor']}"
    assert found[6] == f"file    {run / LAST}"
    done = next(number for number, line in enumerate(said) if line.startswith("done after "))
    # Not the seconds: the time of the last save is in no checkpoint.
    steps_and_characters = said[done].rpartition(", ")[0]
    assert re.fullmatch(rf"{steps_and_characters}, \d+ s \(0\.05 epochs\)", found[7])
    best, _, marks = said[done + 1].partition("; ")
    assert found[8:] == [best, said[-1]]
    assert marks.startswith("unigram ")
    assert said[-1] == f"sample from it with: {command_line(['charrnn', 'sample', str(run)])}"


def test_says_what_a_plan_gave(cli: Cli, run: Run) -> None:
    path = run(
        training={
            "minutes": 3.0, "steps": None, "weight_decay": 0.17,
            "dropout_by_plan": True, "decay_by_plan": True,
        },
        model={"dropout": 0.3},
    )  # fmt: skip
    found = lines(cli("inspect", path))
    assert ", dropout 0.3 (2 masks), weight decay 0.17, " in found[3]
    assert found[4].endswith("; 3 minutes")


def test_json_has_the_promised_names(cli: Cli, trained: Path, prose: Path) -> None:
    result = cli("inspect", trained, "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert found.keys() == documented_fields("`inspect` without a text: one object")
    checkpoint = load(trained / LAST)
    meta = checkpoint.meta
    progress = meta["progress"]
    assert found == {
        "checkpoint": str(trained / LAST),
        "sha256": checkpoint.digest,
        "parameters": sum(
            tensor.numel() for name, tensor in checkpoint.tensors.items() if "model." in name
        ),
        "model": meta["model"],
        "training": meta["training"],
        "changes": [],
        "texts": [str(prose)],
        "valid_texts": [],
        "encoding": "utf-8",
        "fingerprint": meta["text"]["fingerprint"],
        "train_characters": 5406,
        "valid_characters": 601,
        "test_characters": 0,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "processor": meta["processor"],
        "versions": checkpoint.versions,
        "step": 150,
        "planned_steps": 150,
        "epoch": pytest.approx(150 / 22),
        "characters": progress["characters"],
        "seconds": progress["seconds"],
        "best_nats_per_char": progress["best_nats"],
        "best_step": progress["best_step"],
        "validate_characters": progress["validate_characters"],
        "complete": True,
        "go_on": None,
    }


def test_an_unfinished_run_goes_on_as_it_says(cli: Cli, run: Run) -> None:
    folder = run(**unfinished()).parent
    *_, come, best, last = lines(cli("inspect", folder))
    assert come.startswith("so far 150 of 200 steps, ")
    assert come.endswith(" (6.82 epochs)")
    assert best.startswith("best validation ")
    go_on = last.removeprefix("go on with: ")
    found = json.loads(cli("inspect", folder, "--json").out)
    assert (found["complete"], found["go_on"]) == (False, go_on)
    assert cli(*shlex.split(go_on)[1:], "--quiet").code == 0
    *_, come, _, last = lines(cli("inspect", folder))
    assert come.startswith("done after 200 steps, ")
    assert last.startswith("sample from it with: ")


def test_a_run_without_a_plan_yet(cli: Cli, run: Run) -> None:
    budget = {"minutes": 3.0, "steps": None}
    unvalidated = {"best_nats": None, "best_step": None}
    path = run(training=budget, progress={"planned_steps": None, **unvalidated})
    *_, file, come, last = lines(cli("inspect", path))
    assert file == f"file    {path}"
    assert come.startswith("so far 150 steps, ")
    assert last.startswith("go on with: ")
    assert "best validation" not in cli("inspect", path).out


def test_a_last_validation_that_is_missing(cli: Cli, run: Run) -> None:
    path = run(progress={"validated_step": 149})
    assert lines(cli("inspect", path))[7].startswith("so far 150 of 150 steps, ")
    path = run(progress={"validated_step": None}, text={"valid": None})
    assert lines(cli("inspect", path))[7].startswith("done after 150 steps, ")


def test_a_run_out_of_patience_is_finished(cli: Cli, run: Run) -> None:
    stopped = {"planned_steps": 200, "validations_since_best": 2}
    path = run(training={"steps": 200, "patience": 2}, progress=stopped)
    assert lines(cli("inspect", path))[7].startswith(
        "stopped early (no new best in 2 validations) after 150 steps, "
    )
    assert json.loads(cli("inspect", path, "--json").out)["complete"] is True


def test_a_run_on_standard_input_needs_its_text(cli: Cli, run: Run) -> None:
    path = run(**unfinished(text={"texts": ["-"]}))
    first, *_, last = lines(cli("inspect", path))
    assert first.startswith("text    standard input: 5,406 characters")
    assert last == f"go on with: charrnn train TEXT --run {path.parent} --resume"


def test_weights_alone(cli: Cli, run: Run, trained: Path, tmp_path: Path) -> None:
    folder = run(**unfinished()).parent
    best = shutil.copy(trained / BEST, folder / BEST)
    *_, come, _, last = lines(cli("inspect", best))
    assert come.startswith("weights only, after 150 of 150 steps, ")
    assert last == f"its run's newest state: charrnn inspect {folder}"
    whole = (folder / LAST).read_bytes()
    (folder / LAST).write_bytes(whole[:-9])
    assert lines(cli("inspect", best))[-1] == f"sample from it with: charrnn sample {best}"
    alone = shutil.copy(trained / BEST, tmp_path / "mine.safetensors")
    assert lines(cli("inspect", alone))[-1] == f"sample from it with: charrnn sample {alone}"
    (folder / LAST).unlink()
    for path in (folder, best):
        assert lines(cli("inspect", path))[6:] == [
            f"file    {best}", come, *lines(cli("inspect", alone))[8:-1],
            f"sample from it with: charrnn sample {path}",
        ]  # fmt: skip
        found = json.loads(cli("inspect", path, "--json").out)
        assert (found["complete"], found["go_on"]) == (None, None)


def test_earlier_checkpoints(cli: Cli, run: Run) -> None:
    """The newest one left says how far the run is, as resuming starts from it."""
    names = [LAST, "step-00000140.safetensors", "step-00000130.safetensors"]
    last, *earlier = (
        run(f"run/{name}", **unfinished(step=step, progress={"step": step, "planned_steps": 200}))
        for name, step in zip(names, (150, 140, 130), strict=True)
    )
    for path in earlier:
        assert lines(cli("inspect", path))[-1] == (
            f"its run's newest state: charrnn inspect {path.parent}"
        )
    last.write_bytes(last.read_bytes()[:-9])
    damaged = cli("inspect", last.parent)
    assert damaged.err.endswith(f"one of {', '.join(sorted(one.name for one in earlier))}\n")
    newest, oldest = (lines(cli("inspect", path))[-1] for path in earlier)
    assert newest == f"go on with: charrnn train --run {last.parent} --resume"
    assert oldest == f"its run's newest state: charrnn inspect {earlier[0]}"
    last.unlink()
    *_, come, _, then = lines(cli("inspect", last.parent))
    assert come.startswith("so far 140 of 200 steps, ")
    assert then == newest


def test_made_elsewhere_of_a_text_that_is_gone(cli: Cli, run: Run) -> None:
    """The text is not read; and a run cannot be resumed from a file of this name."""
    path = run("theirs.safetensors", **unfinished(text={"texts": ["/gone/poems.txt", "/gone/b"]}))
    checkpoint = load(path)
    del checkpoint.meta["processor"]  # as in older checkpoints
    save(path, replace(checkpoint, versions={"charrnn": "0.0.9\x1b[2J", "torch": "2.1"}))
    found = lines(cli("inspect", path))
    assert found[0].startswith("text    /gone/poems.txt and 1 name more: 5,406 characters to train")
    assert found[5] == r"made    with torch 2.1 and version 0.0.9\x1b[2J of charrnn"
    assert found[-1] == (
        "to go on, save it as last.safetensors in a folder of its own, DIR: charrnn train --run "
        "DIR --resume"
    )
    as_json = json.loads(cli("inspect", path, "--json").out)
    assert (as_json["processor"], as_json["go_on"]) == (None, None)


def test_a_run_of_a_comparison_goes_on_with_it(cli: Cli, run: Run, prose: Path) -> None:
    path = run(f"all/lstm-seed1/{LAST}", **unfinished())
    plan = path.parent.parent / PLAN
    plan.write_text(json.dumps(Plan(texts=(str(prose),), steps=200).to_dict()))
    last = lines(cli("inspect", path))[-1]
    assert last == f"go on with: charrnn compare --run {plan.parent} --resume"
    plan.write_text("[]")
    assert "charrnn train --run" in lines(cli("inspect", path))[-1], "which tells what is wrong"


@pytest.mark.parametrize(
    "flaw", ["missing", "empty", "text", "folder", "cut", "flipped", "model", "vocabulary"]
)
def test_a_file_that_is_no_good_is_refused_as_elsewhere(
    cli: Cli, run: Run, prose: Path, flaw: str
) -> None:
    path = run(**{"model": {"layers": 2**31 - 1}} if flaw == "model" else {})
    if flaw == "vocabulary":
        path = run(vocabulary={"characters": "ab"})
    content = path.read_bytes()
    other = {"empty": b"", "text": prose.read_bytes(), "cut": content[:-9]}
    # The last byte belongs to a tensor, none of which is shown.
    other["flipped"] = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes(other.get(flaw, content))
    if flaw in ("missing", "folder"):
        path.unlink()
    named = path.parent if flaw == "folder" else path
    result = cli("inspect", named)
    assert (result.code, result.out) == (1, "")
    assert result == cli("sample", named)
    assert result == cli("inspect", named, "--json")


@pytest.mark.slow
def test_anything_in_a_description(tmp_path: Path) -> None:
    """Each leaf of the description is replaced by odd values: it is refused in a line, or shown."""
    path = tmp_path / LAST
    whole = load(GOLDEN_DATA / "format-1-lstm.safetensors")
    whole.meta["processor"] = "any"  # a field newer than this file
    for leaf in leaves(whole.meta):
        for odd in ODD:
            save(path, replace(whole, meta=changed(whole.meta, leaf, odd)))
            try:
                status = read_status(path)
                said = status_lines(status)
                to_json(status.to_dict())
            except CheckpointError as error:
                said = [str(error)]
            assert all(map(str.isprintable, said)), (leaf, odd)


def test_a_text_too_short_for_its_lanes(cli: Cli, run: Run) -> None:
    path = run(text={"train": [0, 8]})
    said = "the field 'text' is not usable: 8 characters are too few for 8 lanes"
    assert cli("inspect", path) == Result(1, "", f"charrnn: {path}: {said}\n")


#: The options that do nothing without a text, each with a value.
MEASURING = {
    "--encoding": "utf-8", "--characters": 20_000, "--only": "memory", "--unit": 1,
    "--spectral-radius": 1, "--bptt": 9, "--loss-last": 3, "--seed": 1, "--report": "x.html",
    "--device": "cuda",
}  # fmt: skip


def test_options_that_need_a_text_say_so(cli: Cli, trained: Path, empty_folder: Path) -> None:
    known = typer.main.get_command(app).commands["inspect"]  # type: ignore[attr-defined]
    options = {name for option in known.params for name in option.opts if name.startswith("--")}
    assert MEASURING.keys() == options - {"--text", "--part", "--json"}
    advice = "need a text: give --text FILE, or --part valid for what was held out\n"
    for name, value in MEASURING.items():
        said = f"charrnn: {name} {advice.replace('need', 'needs', 1)}"
        assert cli("inspect", trained, name, value) == Result(2, "", said)
    said = f"charrnn: --only, --seed and --report {advice}"
    words = ("--report", "x.html", "--only", "units", "--seed", 3)
    assert cli("inspect", trained, *words) == Result(2, "", said)


def test_rows_hang_below_what_a_line_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "30")
    print_words("text    one two three four five six", 8)
    rows = capsys.readouterr().out.splitlines()
    assert rows == ["text    one two three four", "        five six"]
