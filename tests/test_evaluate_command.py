"""``charrnn evaluate`` from the command line."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import math
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from charrnn.config import TextSource
from charrnn.inference.baselines import COMPRESSORS
from charrnn.inference.evaluation import SHORTEST_BLOCK
from charrnn.inference.ranking import FEWEST_BLOCKS
from charrnn.runs.subject import load_subjects
from charrnn.storage.checkpoint import load, read_description, save
from charrnn.storage.trained import load_model
from charrnn.text.corpus import Corpus, _count
from charrnn.text.files import _files_of
from charrnn.text.not_text import Nameable
from charrnn.text.scanning import _scan_file, scan
from tests.conftest import (
    GOLDEN_DATA,
    QUICK,
    SIZES,
    Cli,
    documented_fields,
    make_prose,
    needs_full,
    on_a_full_disk,
    one_line,
    refusing,
    run_unread,
    write,
)


class TestEvaluate:
    NAMES = (
        "checkpoint", "cell", "layers", "hidden", "parameters", "characters", "unknown",
        "nats_per_char", "bits_per_char", "bits_per_byte", "perplexity", "chars_per_second",
        "uniform_nats", "bytes", "exact", "precision", "device", "seed", "setting", "notes",
    )  # fmt: skip
    #: The last fields: beside other models, and which checkpoint and text the scores are for.
    ORIGIN = (
        "differences", "over_seeds", "file", "trained_steps", "versions", "texts", "part",
        "encoding", "fingerprint",
    )  # fmt: skip

    def test_json_has_the_promised_names(self, cli: Cli, trained: Path, prose: Path) -> None:
        result = cli("evaluate", trained, trained / "last.safetensors", "--text", prose, "--json")
        assert (result.code, result.err.count("was trained on 5,406 of")) == (0, 1)
        rows = json.loads(result.out)
        assert [tuple(row) for row in rows] == [self.NAMES + self.ORIGIN] * 2
        row = rows[0]
        assert row["checkpoint"] == str(trained)
        assert (row["cell"], row["layers"], row["hidden"]) == ("lstm", 1, 32)
        assert (row["characters"], row["unknown"], row["device"]) == (6006, 0, "cpu")
        assert row["bits_per_char"] == pytest.approx(row["nats_per_char"] / math.log(2))
        assert row["bits_per_byte"] == pytest.approx(row["bits_per_char"]), "the text is ASCII"
        assert row["perplexity"] == pytest.approx(math.exp(row["nats_per_char"]))
        symbols = load(trained / "last.safetensors").meta["model"]["vocabulary"]
        assert row["uniform_nats"] == pytest.approx(math.log(symbols)), "all are known"

    def test_json_says_what_it_is_of(self, cli: Cli, trained: Path, prose: Path) -> None:
        def origin(*words: object) -> list[Any]:
            (row,) = json.loads(cli("evaluate", trained, *words, "--json").out)
            names = ("bytes", "exact", *self.ORIGIN[2:])
            return [row[name] for name in names]

        best = trained / "best.safetensors"
        of_file = [str(best), load(best).meta["progress"]["step"], load(best).versions]
        digest = hashlib.sha256(prose.read_bytes()).hexdigest()
        named = [*of_file, [str(prose)], None, "utf-8", digest]
        assert origin("--text", prose) == [6006, False, *named]
        for option in (["--exact"], ["--after", "the"]):
            assert origin("--text", prose, *option) == [6006, True, *named]
        assert origin("--part", "valid") == [600, False, *of_file, [], "valid", "utf-8", digest]

    @pytest.mark.parametrize("words", ["--text {folder}", "--part valid", "--part test"])
    def test_a_text_is_read_once_for_all_models(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
    ) -> None:
        folder, run = tmp_path / "texts", tmp_path / "run"
        folder.mkdir()
        (folder / "a.txt").write_text(make_prose(900))
        (folder / "b.bin").write_bytes(b"\0\1\2" * 9)
        assert cli("train", folder, "--run", run, "--test-share", 0.1, *QUICK).code == 0
        read: list[Path] = []

        def scan_file(path: Path, *rest: Any) -> Any:
            read.append(path)
            return _scan_file(path, *rest)

        monkeypatch.setattr("charrnn.text.scanning._scan_file", scan_file)
        models = (run, run / "last.safetensors")
        options = [word.format(folder=folder) for word in words.split()]
        result = cli("evaluate", *models, *options, "--baselines", "--json")
        assert result.code == 0
        assert result.err.count("b.bin") == 1
        assert read == [folder / "a.txt", folder / "b.bin"]
        first, second = (row["characters"] for row in json.loads(result.out))
        assert first == second == (899 if "--text" in options else 89)

    def test_more_models_take_no_more_looks_at_their_text(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its characters are counted once, and its folder is searched as often as for one."""
        folder, run = tmp_path / "texts", tmp_path / "run"
        folder.mkdir()
        (folder / "a.txt").write_text(make_prose(900))
        assert cli("train", folder, "--run", run, *QUICK).code == 0
        page = tmp_path / "page.html"
        page.touch()
        looks: list[str] = []

        def looking(name: str, wrapped: Callable[..., Any]) -> Callable[..., Any]:
            def look(*given: Any) -> Any:
                looks.append(name)
                return wrapped(*given)

            return look

        monkeypatch.setattr("charrnn.text.corpus._count", looking("count", _count))
        monkeypatch.setattr("charrnn.text.files._files_of", looking("search", _files_of))
        found = []
        for names in (("best",), ("best", "last")):
            looks.clear()
            models = [run / f"{name}.safetensors" for name in names]
            assert cli("evaluate", *models, "--part", "valid", "--report", page).code == 0
            found.append(looks.copy())
        assert "count" in found[0]
        assert "search" in found[0]
        assert found[0] == found[1]

    def test_a_part_of_the_text_that_the_model_was_trained_on(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        held_out = tmp_path / "valid"
        held_out.write_text(prose.read_text()[-601:], newline="")
        figures = [
            json.loads(cli("evaluate", trained, *options, "--json").out)[0]["nats_per_char"]
            for options in (("--part", "valid"), ("--text", held_out))
        ]
        assert figures[0] == figures[1]

    def test_parts_of_different_texts_are_not_put_side_by_side(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        cli("train", prose, "--run", other, "--test-share", 0.1, *QUICK)
        result = cli("evaluate", trained, other, "--part", "valid")
        assert result.code == 2
        assert f"the valid part of {other} is not that of {trained}" in one_line(result)
        cli("train", prose, "--run", tmp_path / "same", "--encoding", "bytes", *QUICK)
        same = cli("evaluate", trained, tmp_path / "same", "--part", "valid", "--json")
        assert [row["characters"] for row in json.loads(same.out)] == [600, 600]

    def test_says_what_was_trained_on(self, cli: Cli, trained: Path, prose: Path) -> None:
        result = cli("evaluate", trained, "--text", prose)
        assert result.err == (
            f"{trained}: the model was trained on 5,406 of these 6,007 characters: --part valid is "
            "what was held out\n"
        )
        assert cli("evaluate", trained, "--part", "train").err == ""
        (row,) = json.loads(cli("evaluate", trained, "--text", prose, "--json").out)
        (note,) = row["notes"]
        assert result.err == f"{trained}: {note}\n"

    def test_says_so_of_a_file_of_several(self, cli: Cli, tmp_path: Path) -> None:
        texts = [tmp_path / name for name in ("one", "two", "three")]
        for seed, path in enumerate(texts):
            path.write_text(make_prose(1300 + seed, seed=seed), encoding="utf-8")
        run = tmp_path / "run"
        options = ("--valid", texts[2], "--valid", texts[1])
        result = cli("train", *texts[:2], *options, "--run", run, *QUICK)
        note = (
            "note: 1,301 of the 2,603 characters that --valid names are trained on, too: "
            "validations "
        )
        assert note + "flatter the model\n" in result.err
        result = cli("evaluate", run, "--text", texts[1])
        assert f"{run}: the model was trained on these very characters" in result.err
        result = cli("evaluate", run, "--text", texts[2], "--text", texts[0])
        assert f"{run}: the model was trained on 1,300 of these 2,602 characters" in result.err

    def test_runs_that_differ_in_their_seed_have_one_mean(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Wherever the text was, and whatever dropout a plan in minutes chose for each."""
        monkeypatch.chdir(tmp_path)
        copy = shutil.copy(prose, tmp_path / "copy.txt")
        for name, text, seed, more in [
            ("wide-1", prose, 1, ()),
            ("wide-2", copy, 2, ()),
            ("slow-1", prose, 1, ("--lr", 0.001)),
            ("slow-2", prose, 2, ("--lr", 0.001)),
            ("less-3", prose, 3, ("--valid-share", 0.2)),
        ]:
            assert cli("train", text, "--run", name, "--seed", seed, *QUICK, *more).code == 0
        best = load(tmp_path / "wide-2" / "best.safetensors")
        assert best.meta["training"]["dropout_by_plan"]
        best.meta["model"]["dropout"] = 0.25
        save(tmp_path / "wide-2" / "best.safetensors", best)
        scored = ("evaluate", "wide-1", "slow-2", "wide-2", "slow-1", "--text", prose)
        rows = json.loads(cli(*scored, "--json").out)
        assert [row["seed"] for row in rows] == [1, 2, 2, 1]
        wide, slow = rows[0]["over_seeds"], rows[1]["over_seeds"]
        assert [row["over_seeds"] for row in rows[2:]] == [None, None]
        assert (wide["checkpoints"], slow["checkpoints"]) == (
            ["wide-1", "wide-2"],
            ["slow-2", "slow-1"],
        )
        losses = [row["nats_per_char"] for row in rows]
        assert wide["nats_per_char"] == pytest.approx((losses[0] + losses[2]) / 2)
        assert wide["spread"] == pytest.approx(abs(losses[0] - losses[2]) / math.sqrt(2))
        (pair,) = wide["differences"]
        assert (pair["better"], pair["worse"]) == ("wide-1", "slow-2")
        assert pair["nats"] == pytest.approx(slow["nats_per_char"] - wide["nats_per_char"])
        said = cli(*scored).out
        mean = f"wide-*: mean of 2 seeds {wide['nats_per_char']:.4f} nats ("
        assert f"\n{mean}" in said
        assert (
            f"\nwide-* is {pair['nats']:.4f} \N{PLUS-MINUS SIGN} {pair['margin']:.4f} nats " in said
        )
        assert rows[0]["setting"] == rows[2]["setting"] != rows[1]["setting"]
        # A copy in another run's folder is not of that run.
        copied = Path(shutil.copy("slow-2/best.safetensors", "wide-1/copied.safetensors"))
        (row,) = json.loads(cli("evaluate", copied, "--text", prose, "--json").out)
        assert (row["seed"], row["setting"]) == (2, rows[1]["setting"])
        # A plan of few updates shortens the warm-up.
        last = load(tmp_path / "wide-2" / "last.safetensors")
        last.meta["training"]["warmup_steps"] += 1
        save(tmp_path / "wide-2" / "last.safetensors", last)
        assert json.loads(cli(*scored, "--json").out)[2]["setting"] == rows[0]["setting"]
        # Nor is one a seed of another that was given something else on the way, or that began
        # with other weights; where those lay does not matter.
        settings = []
        for changes, began in [
            ([{"step": 3, "was": "--lr 0.5", "now": "--lr 0.1"}], {}),
            ([], {"init_from": "/a", "init_sha256": "1f"}),
            ([], {"init_from": "/b", "init_sha256": "1f"}),
            ([], {"init_from": "/b", "init_sha256": "2e"}),
            ([], {"init_from": "/a"}),
            ([], {"init_from": "/b"}),
            ([{"step": 3, "was": "--lr 0.6", "now": "--lr 0.1"}], {}),
            ([{"step": 3, "was": "--lr 0.5", "now": "--lr 0.2"}], {}),
            ([{"step": 3, "was": "--steps 4", "now": "--steps 5"}], {}),
            ([{"step": 4, "was": "--steps 4", "now": "--steps 5"}], {}),
            ([{"step": 4, "was": "--lr 0.5", "now": "--lr 0.1"}], {}),
            # In minutes no two runs make as many updates.
            ([{"step": 3, "was": "--lr 0.5", "now": "--lr 0.1"}], {"steps": None, "minutes": 1.0}),
            ([{"step": 4, "was": "--lr 0.5", "now": "--lr 0.1"}], {"steps": None, "minutes": 1.0}),
        ]:
            odd = load(tmp_path / "wide-2" / "last.safetensors")
            odd.meta["changes"] = changes
            odd.meta["training"] |= began
            save(tmp_path / "wide-2" / "last.safetensors", odd)
            settings.append(json.loads(cli(*scored, "--json").out)[2]["setting"])
            save(tmp_path / "wide-2" / "last.safetensors", last)
        one, another, same, *odder, minutes, alike = settings
        assert (another, minutes) == (same, alike)
        assert len({rows[0]["setting"], one, another, minutes, *odder}) == 12
        # The run was resumed from before a change, but what it made then is still its best.
        odd = load(tmp_path / "wide-2" / "best.safetensors")
        before = odd.meta.copy()
        odd.meta["changes"] = [{"step": 3, "was": "--lr 0.5", "now": "--lr 0.1"}]
        save(tmp_path / "wide-2" / "best.safetensors", odd)
        assert json.loads(cli(*scored, "--json").out)[2]["setting"] != rows[0]["setting"]
        save(tmp_path / "wide-2" / "best.safetensors", replace(odd, meta=before))
        # What is not finished is in no mean, nor what was chosen in another way.
        last.meta["progress"]["step"] -= 1
        save(tmp_path / "wide-2" / "last.safetensors", last)
        others = ("evaluate", "wide-1", "wide-2", "slow-1", "slow-2/last.safetensors")
        stopped = cli(*others, "--text", prose)
        assert "\nwide-2: in no mean over seeds, as the run is not finished\n" in stopped.out
        assert "mean of" not in stopped.out
        shutil.copy("wide-2/last.safetensors", "stopped.safetensors")
        lasts = ("slow-1/last.safetensors", "wide-1/last.safetensors", "stopped.safetensors")
        stopped = cli("evaluate", *lasts, "--text", prose)
        assert "\nstopped.safetensors: in no mean over seeds, as" in stopped.out, (
            "its state says so"
        )
        # A checkpoint that does not say how it was trained can be scored.
        for name in ("best", "last"):
            checkpoint = load(tmp_path / "slow-1" / f"{name}.safetensors")
            checkpoint.meta["training"]["optimiser"] = "unheard of"
            save(tmp_path / "slow-1" / f"{name}.safetensors", checkpoint)
        (row,) = json.loads(cli("evaluate", "slow-1", "--text", prose, "--json").out)
        assert (row["seed"], row["setting"], row["precision"]) == (None, None, "fp32")
        # Another split of the text is another setting, and so is nothing to be a mean of.
        rows = json.loads(cli("evaluate", "wide-1", "less-3", "--text", prose, "--json").out)
        assert [row["over_seeds"] for row in rows] == [None, None]

    def test_a_run_that_got_more_is_no_seed_of_one_that_had_it_at_once(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its rate has risen and fallen twice."""
        monkeypatch.chdir(tmp_path)
        for seed, steps in enumerate(["6", "6", "3-6", "3-6", "4-6"], start=1):
            first, *more = steps.split("-")
            run = ("--run", f"{steps}-{seed}")
            words = ("--steps", first, *SIZES, "--seed", seed)
            assert cli("train", prose, *run, *words).code == 0
            for budget in more:
                assert cli("train", *run, "--resume", "--steps", budget).code == 0
        runs = sorted(path.name for path in tmp_path.iterdir())
        rows = json.loads(cli("evaluate", *runs, "--text", prose, "--json").out)
        means = [row["over_seeds"]["checkpoints"] for row in rows if row["over_seeds"]]
        assert means == [["3-6-3", "3-6-4"], ["6-1", "6-2"]]

    def test_says_on_how_much_validations_chose_the_checkpoint(
        self, cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If few updates are planned, validations score only the beginning."""
        monkeypatch.setattr("charrnn.runs.planning.validation_length", lambda *_: 100)
        run = tmp_path / "run"
        assert cli("train", prose, "--run", run, *QUICK).code == 0
        result = cli("evaluate", run, "--part", "valid")
        assert "was chosen by its loss on 100 of these 601 characters" in result.err

    def test_says_what_chose_the_checkpoint(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        said = "was chosen by its loss on"
        result = cli("evaluate", trained, "--part", "valid")
        assert result.err == (
            f"{trained}: the model {said} these very characters, which flatters it: another "
            "text tells more\n"
        )
        assert cli("evaluate", trained / "last.safetensors", "--part", "valid").err == ""
        kept = Path(
            shutil.copy(trained / "best.safetensors", tmp_path / "step-00000020.safetensors")
        )
        assert cli("evaluate", kept, "--part", "valid").err == "", "--keep chooses nothing"
        copy = Path(shutil.copy(trained / "best.safetensors", tmp_path / "mine.safetensors"))
        assert said in cli("evaluate", copy, "--part", "valid").err
        later = load(copy)
        later.meta["progress"]["best_step"] -= 1
        save(copy, later)
        assert cli("evaluate", copy, "--part", "valid").err == "", "a renamed last.safetensors"
        # In another encoding positions cannot be compared, so no number is given.
        result = cli("evaluate", trained, "--text", prose, "--encoding", "latin-1")
        assert "the model was trained on some of this text: --part valid is" in result.err
        text, held_out, run = (tmp_path / name for name in ("text", "held-out", "run"))
        text.write_text(make_prose(400))
        held_out.write_text(make_prose(200, seed=2))
        options = ("--valid", held_out, "--test-share", 0.1)
        assert cli("train", text, "--run", run, *options, *QUICK).code == 0
        result = cli("evaluate", run, "--text", held_out)
        assert f"{said} these very characters, which flatters it: --part test" in result.err
        assert said not in cli("evaluate", run, "--part", "test").err

    def test_a_text_that_moved_is_found_where_the_run_went_on_with_it(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        text, run, moved = tmp_path / "text", tmp_path / "run", tmp_path / "moved"
        text.write_bytes(prose.read_bytes())
        cli("train", text, "--run", run, *QUICK)
        whole = cli("evaluate", run, "--part", "valid", "--json")
        text.rename(moved)
        lost = one_line(cli("evaluate", run, "--part", "valid"))
        assert lost == (
            f"charrnn: {run}: the text that its run read: there is no file {text}: check its "
            "name; --text FILE says where it is now; without --part it names another text\n"
        )
        there = cli("evaluate", run, "--part", "valid", "--text", moved, "--baselines", "--json")
        assert (there.code, there.err) == (0, whole.err)
        found, scored = (json.loads(one.out)[0] for one in (there, whole))
        assert found["nats_per_char"] == scored["nats_per_char"]
        assert "unigram" in {one["name"] for one in found["baselines"]}
        other = tmp_path / "other"
        other.write_text(prose.read_text()[::-1])
        for words in (("evaluate",), ("inspect", "--only", "gates")):
            refused = cli(*words, run, "--part", "valid", "--text", other)
            assert refused.code == 1
            assert one_line(refused).startswith(
                f"charrnn: {run}: the text ({other}) is not the one its run was started on: "
            )
        lost = one_line(cli("train", "--run", run, "--resume"))
        assert lost == (
            f"charrnn: there is no file {text}: check its name; if the run's text has moved, "
            f"name it: charrnn train TEXT --run {shlex.quote(str(run))} --resume\n"
        )
        last = run / "last.safetensors"
        before = read_description(last).meta["training"]
        for options in ((), ("--lr", 0.5, "--steps", 3), ("--json", "--lr", 0.5, "--steps", 3)):
            again = cli("train", moved, "--run", run, "--resume", *options)
            assert again.code == 0
            assert ("finished already" in again.err) == ("--json" not in options)
        # Options with no effect on a finished run are not kept: they would apply if it got more.
        assert read_description(last).meta["training"] == before
        assert read_description(last).meta["progress"]["planned_steps"] == 3
        found = cli("evaluate", run, "--part", "valid", "--json")
        assert (found.code, found.err) == (0, whole.err)
        before, since = (json.loads(one.out)[0]["nats_per_char"] for one in (whole, found))
        assert before == since
        moved.rename(text)
        cli("train", "-", "--run", run, "--resume", stdin=prose.read_bytes())
        assert cli("evaluate", run, "--part", "valid").code == 0, "the recorded name still counts"

    def test_a_checkpoint_in_another_run_s_folder_keeps_its_own_text(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        other, run = tmp_path / "other", tmp_path / "run"
        other.write_text(prose.read_text()[::-1])
        assert cli("train", other, "--run", run, *QUICK).code == 0
        stray = shutil.copy(trained / "best.safetensors", run / "stray.safetensors")
        found = [cli("evaluate", path, "--part", "valid", "--json") for path in (trained, stray)]
        one, same = (json.loads(result.out)[0]["nats_per_char"] for result in found)
        assert one == same

    def test_a_text_that_was_piped_is_said_to_be_gone(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        assert cli("train", "-", "--run", run, *QUICK, stdin=prose.read_bytes()).code == 0
        assert one_line(cli("evaluate", run, "--part", "valid")) == (
            f"charrnn: {run}: its run read standard input, which is gone; --text FILE says where "
            "it is now; without --part it names another text\n"
        )
        again = ("evaluate", run, "--part", "valid", "--text", "-", "--baselines")
        found = cli(*again, stdin=prose.read_bytes())
        assert found.code == 0
        assert "unigram" in found.out

    def test_a_result_names_the_file_that_was_loaded(
        self, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        """Even if the run has a better one by the time that the text is scored."""
        run = tmp_path / "run"
        shutil.copytree(trained, run)
        best = run / "best.safetensors"
        best.unlink()
        source = TextSource(texts=(str(prose),))
        (subject,) = load_subjects([run], source, torch.device("cpu"), tell=lambda note: None)
        shutil.copy(trained / best.name, best)
        assert subject.origin(source)["file"] == str(run / "last.safetensors")
        assert subject.chosen() is None
        shutil.rmtree(run)
        assert subject.origin(source)["file"] == str(run / "last.safetensors")

    @pytest.mark.parametrize("with_training", [False, True])
    def test_the_training_text_is_read_where_it_is_needed(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_training: bool
    ) -> None:
        text, read = tmp_path / "text", []
        text.write_text(make_prose(200, seed=2))

        def counting(texts: tuple[str, ...], encoding: str, nameable: Nameable) -> Corpus:
            read.append(texts)
            return scan(texts, encoding, nameable)

        monkeypatch.setattr("charrnn.runs.subject.scan", counting)
        (subject,) = load_subjects(
            [trained], TextSource(texts=(str(text),)), torch.device("cpu"),
            with_training=with_training, tell=print,
        )  # fmt: skip
        assert len(read) == 1 + with_training
        assert (subject.training is not None) == with_training

    def test_a_validation_text_that_moved_is_not_taken_for_the_training_text(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        held_out, run, moved = tmp_path / "held-out", tmp_path / "run", tmp_path / "moved"
        held_out.write_text(make_prose(200, seed=2))
        assert cli("train", prose, "--valid", held_out, "--run", run, *QUICK).code == 0
        held_out.rename(moved)
        found = cli("evaluate", run, "--part", "valid", "--text", moved, "--baselines", "--json")
        assert "left out" not in found.err
        assert "unigram" in {one["name"] for one in json.loads(found.out)[0]["baselines"]}

    def test_only_a_name_after_those_of_a_text_is_said_to_be_of_a_pattern(
        self, cli: Cli, trained: Path, prose: Path
    ) -> None:
        hint = "in quotes"
        assert hint in one_line(cli("evaluate", trained, prose, "--text", prose))
        assert hint not in one_line(cli("evaluate", prose, "--text", prose))
        assert hint not in one_line(cli("evaluate", trained, prose, "--part", "valid"))

    def test_what_lies_beside_runs_is_left_out(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        """A pattern also matches a comparison's folder, a text and a compressed file."""
        for name in ("a run", "b-run", "c-compare/lstm-seed1"):
            shutil.copytree(trained, tmp_path / name)
        (tmp_path / "README.md").write_text("# Runs\n")
        (tmp_path / "z.pt").write_bytes(gzip.compress(b"z"))
        found = sorted(tmp_path.iterdir())
        for options in (("--part", "valid"), ("--text", prose)):
            result = cli("evaluate", *found, *options, "--json")
            assert result.code == 0
            runs = [Path(row["checkpoint"]).name for row in json.loads(result.out)]
            assert runs == ["a run", "b-run"]
            assert result.err.splitlines()[:3] == [
                f"{tmp_path / 'README.md'}: a text, not a checkpoint: left out",
                f"{tmp_path / 'c-compare'}: a folder without a checkpoint: left out",
                f"{tmp_path / 'z.pt'}: compressed by gzip: left out",
            ]
        none = cli("evaluate", *found[3:], "--part", "valid")
        says = "c-compare: a folder without a checkpoint: name the folder of a run in it, such as "
        assert says in one_line(none)

    def test_what_else_a_run_s_folder_holds_is_left_out(self, cli: Cli, trained: Path) -> None:
        files = sorted(trained.iterdir())
        assert {"lock", "metrics.jsonl"} <= {path.name for path in files}
        found = cli("evaluate", *files, "--part", "valid", "--json")
        assert found.code == 0
        scored = sum(path.suffix == ".safetensors" for path in files)
        assert len(json.loads(found.out)) == scored
        assert "left out" not in found.err, "such as the log are no news"

    def test_nothing_else_is_left_out(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        """Not a damaged checkpoint, nor a file elsewhere, which no pattern for runs would match."""
        run, other = (shutil.copytree(trained, tmp_path / name) for name in ("run", "other"))
        content = (other / "best.safetensors").read_bytes()
        damaged = content[:-1] + bytes([content[-1] ^ 1])
        for flaw, said in ((damaged, "damaged: its SHA-256"), (b"", "the file is empty")):
            (other / "best.safetensors").write_bytes(flaw)
            line = one_line(cli("evaluate", run, other, "--part", "valid"))
            assert f"{other / 'best.safetensors'}: {said}" in line
        missing = one_line(cli("evaluate", run, tmp_path / "no", "--part", "valid"))
        assert "no such checkpoint" in missing
        line = one_line(cli("evaluate", run, prose, "--part", "valid"))
        assert f"{prose}: a text, not a checkpoint: train on it" in line
        beside = [shutil.copy(prose, tmp_path / name) for name in ("a.txt", "b.txt")]
        line = one_line(cli("evaluate", run, "--text", *beside))
        assert line.endswith(
            "if a pattern after --text gave this name, put the pattern in quotes\n"
        )

    def test_a_device_that_is_no_cpu_is_named(
        self, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cpu = torch.device("cpu")
        monkeypatch.setattr(
            "charrnn.compute.device.choose_device", lambda _name: torch.device("mps")
        )
        monkeypatch.setattr(
            "charrnn.runs.subject.load_model", lambda path, _: load_model(path, cpu)
        )
        words = ("evaluate", trained, "--text", trained / "metrics.jsonl")
        for options in ((), ("--json",)):
            result = cli(*words, *options)
            assert result.code == 0
            assert result.err.endswith("\nscoring on mps\n")

    def test_sampling_and_looking_name_such_a_device_too(
        self, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cpu = torch.device("cpu")
        monkeypatch.setattr(
            "charrnn.compute.device.choose_device", lambda _name: torch.device("mps")
        )
        for module in ("storage.trained", "runs.subject"):
            name = f"charrnn.{module}.load_model"
            monkeypatch.setattr(name, lambda path, _: load_model(path, cpu))
        result = cli("sample", trained, "--length", 3, "--json")
        assert (result.code, result.err) == (0, "sampling on mps\n")
        assert json.loads(result.out)["device"] == "mps"
        words = ("inspect", trained, "--part", "valid", "--only", "clipping")
        result = cli(*words, "--json")
        assert (result.code, json.loads(result.out)["device"]) == (0, "mps")
        assert "inspecting on mps\n" in result.err
        assert "inspecting on mps\n" in cli(*words).err

    def test_models_are_told_apart_as_their_prices_say(self, cli: Cli, tmp_path: Path) -> None:
        models = [GOLDEN_DATA / f"format-1-{cell}.safetensors" for cell in ("rnn", "gru")]
        text = write(tmp_path / "text", make_prose(FEWEST_BLOCKS * SHORTEST_BLOCK + 1))
        rows = json.loads(cli("evaluate", *models, "--text", text, "--exact", "--json").out)
        (found,) = rows[0]["differences"] + rows[1]["differences"]
        priced = []
        for model in models:
            prices = tmp_path / "prices"
            assert cli("evaluate", model, "--text", text, "--per-char", prices).code == 0
            lines = prices.read_text(encoding="utf-8").splitlines()
            priced.append([json.loads(line)["nats"] for line in lines])
        rnn, gru = np.array(priced)
        by_block = (rnn - gru).reshape(FEWEST_BLOCKS, SHORTEST_BLOCK).mean(1)
        sign = 1 if found["better"] == str(models[1]) else -1
        assert found["nats"] == pytest.approx(sign * by_block.mean(), abs=1e-5)
        error = by_block.std(ddof=1) / math.sqrt(FEWEST_BLOCKS)
        assert found["margin"] == pytest.approx(2.57058 * error, rel=1e-3)
        shorter = write(tmp_path / "text", make_prose(FEWEST_BLOCKS * SHORTEST_BLOCK))
        rows = json.loads(cli("evaluate", *models, "--text", shorter, "--json").out)
        assert [row["differences"] for row in rows] == [[], []]

    def test_scores_in_the_precision_of_the_training(
        self, cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the device multiplies it; but exactly what is to be exact."""
        best = load(trained / "best.safetensors")
        best.meta["training"]["precision"] = "bf16"
        save(tmp_path / "narrow.safetensors", best)
        both = ("evaluate", trained, tmp_path / "narrow.safetensors", "--part", "valid", "--json")
        for able, options, expected in [
            (True, (), ["fp32", "bf16"]), (True, ("--exact",), ["fp32", "fp32"]),
            (False, (), ["fp32", "fp32"]),
        ]:  # fmt: skip
            monkeypatch.setattr("charrnn.storage.trained.recurs_in_bf16", lambda _, able=able: able)
            wide, narrow = json.loads(cli(*both, *options).out)
            assert [wide["precision"], narrow["precision"]] == expected
            alike = wide["nats_per_char"] == narrow["nats_per_char"]
            assert alike is (expected[0] == expected[1])

    def test_in_depth_adds_names_and_changes_none(self, cli: Cli, trained: Path) -> None:
        plain = json.loads(cli("evaluate", trained, "--part", "valid", "--json").out)[0]
        options = ("--baselines", "--dynamic", "--by-position", 7, "--after", "the ")
        result = cli("evaluate", trained, "--part", "valid", *options, "--json")
        (row,) = json.loads(result.out)
        assert result.err.count("\n") == 1
        assert tuple(row) == (
            *self.NAMES, "dynamic", "nats_by_position", "stretches", "after", "baselines",
            *self.ORIGIN,
        )  # fmt: skip
        assert row.keys() == documented_fields("`evaluate`: a list")
        measured = set(self.NAMES) - {"chars_per_second"}
        assert {name: row[name] for name in measured} == {name: plain[name] for name in measured}
        assert tuple(row["dynamic"]) == self.NAMES[7:12]
        assert (len(row["nats_by_position"]), row["stretches"]) == (7, 600 // 7)
        for baseline in row["baselines"]:  # the text is ASCII
            assert baseline["bits_per_byte"] == pytest.approx(baseline["bits_per_char"])
            assert baseline["perplexity"] == pytest.approx(2 ** baseline["bits_per_char"])
        assert row["after"]["text"] == "the "
        assert row["after"]["characters"] > 0
        shown = cli("evaluate", trained, "--part", "valid", "--after", "the ").out
        assert f"{trained}: after 'the ' " in shown
        names = [baseline["name"] for baseline in row["baselines"]]
        assert names[:2] == ["uniform", "unigram"]
        assert names[2].endswith("-gram")
        assert names[3:] == ["gzip", "bzip2", "xz"]

    def test_baselines_without_the_training_text(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        text, run = tmp_path / "text", tmp_path / "run"
        text.write_text(prose.read_text())
        cli("train", text, "--run", run, *QUICK)
        text.write_text(make_prose(99))
        result = cli("evaluate", run, "--text", prose, "--baselines", "--json")
        said = (
            "the model has no unigram and n-gram beside it, which learn from its training part: "
            f"the text ({text}) is not the one its run was started on: "
        )
        assert f"held out\n{run}: {said}" in result.err
        assert result.err.endswith("...: bring the old text back\n")
        (row,) = json.loads(result.out)
        assert row["notes"][-1].startswith(said)
        names = [baseline["name"] for baseline in row["baselines"]]
        assert names == ["uniform", "gzip", "bzip2", "xz"]
        # No option of evaluate names the encoding of that text.
        text.write_bytes("Ärger und Öl ".encode("latin-1") * 50)
        result = cli("evaluate", run, "--text", prose, "--baselines")
        assert f"{text} is not utf-8 text at byte 0" in result.err
        assert result.err.endswith("): bring the old text back\n")

    def test_a_text_that_moved_is_found_for_the_baselines_of_its_test_part(
        self, cli: Cli, prose: Path, tmp_path: Path
    ) -> None:
        """The run validates on another text, but --text names that one only with --part valid."""
        text, moved, run = tmp_path / "text", tmp_path / "moved", tmp_path / "run"
        text.write_text(prose.read_text())
        cli("train", text, "--valid", prose, "--test-share", 0.1, "--run", run, *QUICK)
        text.rename(moved)
        for part in ("test", "train"):
            words = ("--part", part, "--text", moved, "--baselines", "--json")
            found = cli("evaluate", run, *words)
            names = [baseline["name"] for baseline in json.loads(found.out)[0]["baselines"]]
            assert "unigram" in names, found.err
        found = cli("evaluate", run, "--part", "valid", "--text", prose, "--baselines")
        assert f"there is no file {text}" in found.err

    def test_models_that_read_other_files_of_a_folder_are_not_ranked(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path
    ) -> None:
        folder, of_bytes = tmp_path / "folder", tmp_path / "bytes"
        folder.mkdir()
        (folder / "a").write_text(prose.read_text())
        (folder / "b").write_bytes(b"\xe9t\xe9 " * 20)
        cli("train", prose, "--encoding", "bytes", "--run", of_bytes, *QUICK)
        for models in ((trained, of_bytes), (of_bytes, trained)):
            done = cli("evaluate", *models, "--text", folder)
            assert done.code == 2
            assert (
                f"charrnn: {folder}/b is text for {of_bytes} but not for {trained}, which reads "
                "another encoding: score them one by one, or name files that both can read\n"
            ) in done.err
            assert cli("evaluate", *models, "--text", folder / "a").code == 0

    @needs_full
    def test_a_file_of_prices_is_whole_where_the_text_cannot_be_shown(
        self, trained: Path, tmp_path: Path
    ) -> None:
        prices = tmp_path / "prices"
        words = ("evaluate", trained, "--part", "valid", "--show", "--per-char", prices)
        code, said = on_a_full_disk(*words)
        assert code == 1
        assert said.endswith("charrnn: cannot write the output: No space left on device\n")
        assert len(prices.read_text(encoding="utf-8").splitlines()) == 600

    @pytest.mark.parametrize("option", ["--per-char", "--report"])
    def test_a_file_is_written_though_the_reader_of_the_text_leaves(
        self, trained: Path, tmp_path: Path, option: str
    ) -> None:
        """As when a user quits a pager; without a file to write, that ends the command."""
        file = tmp_path / "of-scores.html"
        code, _ = run_unread("evaluate", trained, "--part", "valid", "--show", option, file)
        assert (code, file.exists()) == (0, True)

    def test_a_file_of_prices_that_fails_at_its_end_costs_no_scores(
        self, cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.fsync", refusing(errno.ENOSPC))
        prices = tmp_path / "prices"
        done = cli("evaluate", trained, "--part", "valid", "--json", "--per-char", prices)
        said = f"charrnn: {prices}: cannot write the prices: No space left on device; free some "
        assert (done.code, said in done.err, prices.exists()) == (1, True, False)
        assert json.loads(done.out)[0]["characters"] == 600

    @needs_full
    def test_so_does_one_that_fails_before(self, cli: Cli, trained: Path) -> None:
        done = cli("evaluate", trained, "--part", "valid", "--json", "--per-char", "/dev/full")
        assert (done.code, "/dev/full: cannot write the prices: No space" in done.err) == (1, True)
        assert json.loads(done.out)[0]["characters"] == 600

    def test_a_file_of_prices_is_refused_before_anything_is_measured(
        self, cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "charrnn.commands.watching.price_baselines", lambda *_: pytest.fail("it was")
        )
        words = ("--part", "valid", "--baselines", "--per-char", tmp_path / "missing" / "x")
        done = cli("evaluate", trained, *words)
        assert done.code == 1
        assert done.err.endswith("missing/x: cannot write the prices: No such file or directory\n")

    @pytest.mark.parametrize("options", [(), ("--dynamic",)])
    def test_the_price_of_each_character_adds_up(
        self, cli: Cli, trained: Path, prose: Path, tmp_path: Path, options: tuple[str, ...]
    ) -> None:
        file = tmp_path / "prices.jsonl"
        result = cli(
            "evaluate", trained, "--text", prose, "--per-char", file, *options, "--json"
        )  # fmt: skip
        (row,) = json.loads(result.out)
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert "".join(line["character"] for line in lines) == prose.read_text()[1:]
        assert [line["position"] for line in lines] == list(range(1, 6007))
        mean = sum(line["nats"] for line in lines) / 6006
        assert mean == pytest.approx(row.get("dynamic", row)["nats_per_char"], abs=1e-5)

    @pytest.mark.parametrize("options", [(), ("--exact",), ("--after", "the")])
    def test_says_how_far_it_is(
        self, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
    ) -> None:
        monkeypatch.setattr("charrnn.commands.stdio.Meter.PLAIN", 0.0)
        words = ("evaluate", trained, "--part", "valid", "--dynamic", *options)
        for more in ((), ("--json",)):
            said = cli(*words, *more).err
            for what in ("scored", "scored by dynamic evaluation"):
                assert f"600 of 600 characters {what}, 0 s to go: {trained}\n" in said
        assert "characters scored" not in cli(*words, "--show").err

    def test_says_how_far_the_rest_is(
        self, cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("charrnn.commands.stdio.Meter.PLAIN", 0.0)
        words = ("evaluate", trained, trained / "last.safetensors", "--part", "valid")
        said = cli(*words, "--baselines", "--by-position", 7).err.splitlines()
        priced = ["scored by the n-gram model", *(f"compressed by {name}" for name in COMPRESSORS)]
        for what in priced:
            told = [f"600 of 600 characters {what}, 0 s to go: {trained}"]
            assert [line for line in said if what in line] == told, "both have these baselines"
        assert f"595 of 600 characters scored by position, 0 s to go: {trained}" in said

    @pytest.mark.parametrize(
        ("target", "options"),
        [
            ("text", ""),
            ("alias", ""),
            ("run/best.safetensors", ""),
            ("run/last.safetensors", ""),
            ("run/metrics.jsonl", ""),
            ("learnt", "--baselines"),
        ],
    )
    def test_what_is_read_is_not_written_over(
        self, cli: Cli, tmp_path: Path, target: str, options: str
    ) -> None:
        text, run, learnt = (tmp_path / name for name in ("text", "run", "learnt"))
        text.write_text(make_prose(300))
        (tmp_path / "alias").symlink_to(text)
        learnt.write_text(make_prose(302))
        assert cli("train", learnt, "--valid", text, "--run", run, *QUICK).code == 0
        before = (tmp_path / target).read_bytes()
        for named in (("--text", text), ("--part", "valid")):
            words = ("--per-char", tmp_path / target, *options.split())
            result = cli("evaluate", run, *named, *words)
            assert f"--per-char {tmp_path / target} would overwrite " in one_line(result)
            assert result.code == 2
            assert (tmp_path / target).read_bytes() == before
        for _ in range(2):
            beside = ("--part", "valid", "--per-char", run / "prices.jsonl")
            assert cli("evaluate", run, *beside).code == 0

    def test_the_plan_of_a_run_s_comparison_is_not_written_over(
        self, cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, plan = tmp_path / "lstm-seed1", tmp_path / "comparison.json"
        shutil.copytree(trained, run)
        plan.write_text("{}")
        (run / "link").symlink_to(run)
        monkeypatch.chdir(run)
        for path in (run, ".", run / "link"):
            result = cli("evaluate", path, "--part", "valid", "--per-char", plan)
            said = f"charrnn: --per-char {plan} would overwrite the comparison's plan: give "
            assert one_line(result).startswith(said)
            assert plan.read_text() == "{}"

    @pytest.mark.parametrize("target", ["learnt", "held", "alias"])
    def test_what_the_run_read_is_not_written_over(
        self, cli: Cli, tmp_path: Path, target: str
    ) -> None:
        """Even though another text is scored."""
        learnt, held, text = (tmp_path / name for name in ("learnt", "held", "text"))
        for number, path in enumerate((learnt, held, text)):
            path.write_text(make_prose(300 + number))
        (tmp_path / "alias").symlink_to(learnt)
        run = tmp_path / "run"
        assert cli("train", learnt, "--valid", held, "--run", run, *QUICK).code == 0
        before = (tmp_path / target).read_bytes()
        result = cli("evaluate", run, "--text", text, "--per-char", tmp_path / target)
        assert f"--per-char {tmp_path / target} would change {tmp_path}/" in one_line(result)
        assert result.code == 2
        assert (tmp_path / target).read_bytes() == before

    def test_shows_the_text(self, cli: Cli, trained: Path, tmp_path: Path) -> None:
        text = tmp_path / "text"
        text.write_text("The grey stone \x1b[2J sings.\n")
        result = cli("evaluate", trained, "--text", text, "--show")
        assert result.code == 0
        assert result.err.splitlines() == [
            f"{trained}: the model does not know 4 of the 26 characters scored, and each is "
            "charged as the unknown symbol and spelled out: '\\x1b' x 1, '2' x 1, 'J' x 1, '[' x 1",
            "the text is shown without colours here: FORCE_COLOR=1 keeps them, --per-char FILE "
            "writes each character's loss",
        ]
        assert result.out.startswith("The grey stone \ufffd[2J sings.")
        assert "\x1b" not in result.out, "a pipe gets no colours"

    def test_the_first_character_has_no_price(
        self, cli: Cli, trained: Path, tmp_path: Path
    ) -> None:
        text = tmp_path / "text"
        for strange in ("☃", "☃☃"):
            text.write_text(strange + "The grey stone", encoding="utf-8")
            result = cli("evaluate", trained, "--text", text, "--json")
            unknown = json.loads(result.out)[0]["unknown"]
            assert unknown == len(strange) - 1
            assert result.err.count(f"does not know {unknown} of the 15 characters") == unknown

    def test_a_note_on_several_models_is_said_once(
        self, cli: Cli, trained: Path, of_bytes: Path, tmp_path: Path
    ) -> None:
        text = tmp_path / "text"
        text.write_text("The grey stone sings 22.\n")
        last = trained / "last.safetensors"
        result = cli("evaluate", trained, of_bytes, last, "--text", text)
        assert result.err == (
            f"{trained}, {last}: each model does not know 2 of the 24 characters scored, and each "
            "is charged as the unknown symbol and spelled out: '2' x 2\n"
        )

    def test_exact_and_default_agree(
        self, cli: Cli, trained: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # By default there are 20 lanes.
        monkeypatch.setattr("charrnn.inference.evaluation.SHORTEST_LANE", 300)
        monkeypatch.setattr("charrnn.inference.evaluation.WARM_UP", 9)  # too short to forget all
        results = [
            json.loads(cli("evaluate", trained, "--text", prose, "--json", *options).out)[0]
            for options in ((), ("--exact",))
        ]
        by_lanes, exact = (result["nats_per_char"] for result in results)
        assert 0 < abs(by_lanes - exact) < 1e-3

    def test_an_encoding_is_for_the_models_of_characters(
        self, cli: Cli, trained: Path, of_bytes: Path, tmp_path: Path
    ) -> None:
        text = tmp_path / "text"
        text.write_text("the grey stöne sings", encoding="latin-1")
        models = (of_bytes, trained)
        assert "--encoding" in one_line(cli("evaluate", *models, "--text", text))
        result = cli("evaluate", *models, "--text", text, "--encoding", "latin-1", "--json")
        assert [row["unknown"] for row in json.loads(result.out)] == [0, 1]
        for words in (("latin-1", of_bytes, of_bytes), ("bytes", *models)):
            refused = cli("evaluate", *words[1:], "--text", text, "--encoding", words[0])
            assert "leave it out" in one_line(refused)

    def test_bytes_that_are_no_utf_8_can_be_followed(
        self, cli: Cli, tmp_path: Path, of_bytes: Path
    ) -> None:
        text = tmp_path / "text"
        text.write_bytes(b"a\xffb\xffc")
        result = cli("evaluate", of_bytes, "--text", text, "--after", "\udcff", "--json")
        assert json.loads(result.out)[0]["after"]["characters"] == 2

    def test_a_page_of_a_single_character(self, cli: Cli, tmp_path: Path, of_bytes: Path) -> None:
        text, page = tmp_path / "text", tmp_path / "page.html"
        text.write_text("é", encoding="utf-8")
        assert cli("evaluate", of_bytes, "--text", text, "--report", page).code == 0
        assert "bits for 1 character, " in page.read_text(encoding="utf-8")

    def test_models_of_other_symbols_have_other_baselines(
        self, cli: Cli, prose: Path, trained: Path, of_bytes: Path
    ) -> None:
        result = cli("evaluate", trained, of_bytes, "--text", prose, "--baselines")
        said = [line for line in result.out.splitlines() if line.startswith("uniform (")]
        assert len(said) == 4
        assert f"uniform ({of_bytes}): 256 symbols" in said

    def test_a_note_does_not_name_where_standard_input_is_kept(
        self, cli: Cli, trained: Path
    ) -> None:
        for name in ("evaluate", "inspect"):
            text = b"\xef\xbb\xbf" + make_prose(400).encode()
            result = cli(name, trained, "--text", "-", stdin=text)
            assert "standard input: read without its byte order mark" in result.err
