"""The pages that the commands write with --report: where they go, and how a browser shows them."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from charrnn.errors import UsageError
from charrnn.runs.comparison_plan import Plan
from charrnn.storage.checkpoint import load, save
from charrnn.views.inside import SHADES
from charrnn.views.page import STYLE
from tests.conftest import Cli, make_prose, run_cli, run_unread, slowly
from tests.pages import check, contrast


@dataclass(frozen=True)
class Pages:
    """One page of each command, of small models."""

    compare: Path
    evaluate: Path
    inspect: Path
    folder: Path
    """The folder of the comparison."""


@pytest.fixture(scope="module")
def pages(prose: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Pages:
    folder = tmp_path_factory.mktemp("pages")
    made = Pages(
        compare=folder / "compare.html",
        evaluate=folder / "evaluate.html",
        inspect=folder / "inspect.html",
        folder=folder / "run",
    )
    for arguments in (
        ("compare", prose, "--steps", 30, "--hidden", 12, "--batch-size", 4, "--bptt", 16,
         "--seeds", 2, "--cell", "rnn", "--cell", "lstm", "--run", made.folder, "--quiet",
         "--report", made.compare),
        ("evaluate", trained, "--part", "valid", "--baselines", "--by-position", 32,
         "--report", made.evaluate),
        ("inspect", trained, "--part", "train", "--characters", 3000, "--report", made.inspect),
    ):  # fmt: skip
        done = run_cli(*arguments)
        assert done.code == 0, done.err
        assert done.err.endswith(f"report: {arguments[-1]}\n")
    return made


NAMES = ("compare", "evaluate", "inspect")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_makes_a_sound_page(pages: Pages, name: str) -> None:
    path: Path = getattr(pages, name)
    text = path.read_text(encoding="utf-8")
    page = check(text)
    assert f"charrnn {name} " in page.texts["code"][0]
    assert path.stat().st_size < 1_000_000
    assert {"Learning", "Samples", "Surprise"} <= set(page.texts["h2"])


def test_a_sample_in_the_page_is_what_sample_writes(cli: Cli, pages: Pages, trained: Path) -> None:
    (shown,) = re.findall(
        r'aria-label="Sample of trained">\n(.*?)</pre>', pages.inspect.read_text("utf-8"), re.DOTALL
    )
    written = cli("sample", trained, "--length", 600, "--temperature", 0.8, "--seed", 1)
    assert shown == written.out


def test_prices_in_the_page_are_those_of_per_char(
    cli: Cli, pages: Pages, trained: Path, tmp_path: Path
) -> None:
    prices = tmp_path / "prices.jsonl"
    cli("evaluate", trained, "--part", "valid", "--per-char", prices)
    rows = [json.loads(line) for line in prices.read_text(encoding="utf-8").splitlines()]
    bits = sum(row["nats"] for row in rows) / math.log(2)
    said = f"{bits:,.0f} bits for {len(rows):,} characters, {bits / len(rows):.2f} each."
    assert said in pages.evaluate.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["evaluate", "inspect"])
def test_a_page_of_standard_input(cli: Cli, trained: Path, tmp_path: Path, name: str) -> None:
    page, text = tmp_path / "page.html", make_prose(300)
    done = cli(name, trained, "--text", "-", "--report", page, stdin=text.encode())
    assert done.code == 0, done.err
    read = " ".join(check(page.read_text(encoding="utf-8")).texts["pre"])
    assert text.splitlines()[0] in read
    assert text.splitlines()[-1] in read


def test_a_finished_comparison_makes_its_page_without_training(
    cli: Cli, pages: Pages, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in pages.folder.rglob("*")}
    again = tmp_path / "again.html"
    done = cli("compare", "--run", pages.folder, "--resume", "--quiet", "--report", again)
    assert (done.code, done.err) == (0, f"report: {again}\n")
    assert {path: path.stat().st_mtime_ns for path in pages.folder.rglob("*")} == before

    def body(path: Path) -> str:
        return path.read_text(encoding="utf-8").partition('<section id="how-this-was-made"')[0]

    assert body(again) == body(pages.compare)


def test_a_comparison_that_was_moved_makes_its_page(cli: Cli, pages: Pages, tmp_path: Path) -> None:
    moved = shutil.copytree(pages.folder, tmp_path / "moved")
    report = tmp_path / "again.html"
    assert cli("compare", "--run", moved, "--resume", "--quiet", "--report", report).code == 0


def test_a_comparison_whose_checkpoint_is_not_described_names_it(
    cli: Cli, pages: Pages, tmp_path: Path
) -> None:
    moved = shutil.copytree(pages.folder, tmp_path / "moved")
    for path in moved.glob("rnn-*/best.safetensors"):
        checkpoint = load(path)
        save(path, replace(checkpoint, meta={**checkpoint.meta, "training": {}}))
    done = cli("compare", "--run", moved, "--resume", "--quiet", "--report", tmp_path / "a.html")
    assert done.code == 1
    assert "the field 'training' is not usable: 'batch_size' is missing\n" in done.err


@pytest.fixture
def huge(trained: Path, tmp_path: Path) -> Path:
    """Return a model whose weights are finite, as in any checkpoint, but whose results are not."""
    checkpoint, folder = load(trained / "best.safetensors"), tmp_path / "huge"
    large = {weight: tensor.sign() * 3e38 for weight, tensor in checkpoint.tensors.items()}
    folder.mkdir()
    save(folder / "best.safetensors", replace(checkpoint, tensors=large))
    return folder


def test_scores_that_are_no_numbers_are_shown_and_refused(
    cli: Cli, prose: Path, trained: Path, huge: Path
) -> None:
    done = cli("evaluate", trained, huge, "--text", prose, "--json", "--device", "cpu")
    assert done.code == 1
    good, bad = (row["nats_per_char"] for row in json.loads(done.out))
    assert 0 < good < 10
    assert bad is None
    assert f"charrnn: {huge}: its loss is not finite: train anew with a lower --lr\n" in done.err
    code, said = run_unread("evaluate", huge, "--text", prose, "--device", "cpu")
    assert code == 1, "also if nobody reads the scores"
    assert said.endswith("its loss is not finite: train anew with a lower --lr\n")


@pytest.mark.parametrize("name", ["evaluate", "inspect"])
def test_weights_too_large_to_compute_with_are_named(
    cli: Cli, prose: Path, huge: Path, tmp_path: Path, name: str
) -> None:
    page = tmp_path / "p.html"
    done = cli(name, huge, "--text", prose, "--report", page, "--device", "cpu")
    assert (done.code, page.exists()) == (1, False)
    assert done.out, "the tables are printed"
    assert (
        f"{huge}: its loss is not finite, so a page cannot show it: " in done.err.splitlines()[-1]
    )


def test_a_stopped_comparison_leaves_the_old_page_and_the_way_on(
    cli: Cli, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "charrnn.views.display._Notes.show", lambda *_: signal.raise_signal(signal.SIGINT)
    )
    report = tmp_path / "page.html"
    report.write_text("old", encoding="utf-8")
    done = cli(
        "compare", prose, "--steps", 30, "--hidden", 12, "--run", tmp_path / "run", "--quiet",
        "--report", report,
    )  # fmt: skip
    assert (done.code, done.out) == (130, "")
    assert f"--run {tmp_path / 'run'} --resume --report {report}" in done.err
    assert report.read_text(encoding="utf-8") == "old"


def test_a_signal_while_the_page_is_made_loses_nothing_but_the_page(
    cli: Cli, pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "charrnn.views.portrait.portray_comparison",
        lambda *_: signal.raise_signal(signal.SIGTERM),
    )
    report = tmp_path / "page.html"
    done = cli("compare", "--run", pages.folder, "--resume", "--quiet", "--report", report)
    assert done.code == 128 + signal.SIGTERM
    assert "nats/char" in done.out, "the table is printed first"
    way_on = f"charrnn compare --run {pages.folder} --resume --report {report}"
    assert f"all runs are done, but there is no report yet; go on with: {way_on}\n" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["evaluate", *slowly(*NAMES[::2])])
def test_a_reader_who_leaves_does_not_take_the_page_along(
    pages: Pages, trained: Path, tmp_path: Path, name: str
) -> None:
    """In a real process, with a real pipe."""
    report = tmp_path / "page.html"
    words: dict[str, tuple[object, ...]] = {
        "compare": ("--run", pages.folder, "--resume"),
        "evaluate": (trained, "--part", "valid"),
        "inspect": (trained, "--part", "valid", "--only", "memory"),
    }
    code, said = run_unread(name, *words[name], "--report", report)
    assert code == 0
    assert said.endswith(f"report: {report}\n")
    check(report.read_text(encoding="utf-8"))


class TestWhereThePageGoes:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("page.txt", "give FILE.html"),
            ("none/page.html", "cannot save"),
            ("is.html", "not a regular file: give another"),
        ],
    )
    @pytest.mark.parametrize("command", NAMES)
    def test_it_is_looked_at_before_anything_else(
        self, cli: Cli, tmp_path: Path, command: str, name: str, words: str
    ) -> None:
        (tmp_path / "is.html").mkdir()
        arguments = ["no-text"] if command == "compare" else ["no-run", "--part", "valid"]
        done = cli(command, *arguments, "--report", tmp_path / name)
        assert done.code in (1, 2)
        assert words in done.err
        assert len(done.err.splitlines()) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["is.html"]

    def test_without_matplotlib_it_says_what_to_install(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        done = cli("inspect", "run", "--part", "valid", "--report", tmp_path / "page.html")
        assert done.code == 2
        assert "pip install '.[report]'" in done.err

    def test_a_page_replaces_the_file_that_a_link_names(
        self, cli: Cli, trained: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "real.html").write_text("old", encoding="utf-8")
        (tmp_path / "link.html").symlink_to("real.html")
        done = cli("evaluate", trained, "--part", "valid", "--report", tmp_path / "link.html")
        assert done.code == 0
        assert (tmp_path / "link.html").is_symlink()
        check((tmp_path / "real.html").read_text(encoding="utf-8"))

    @pytest.mark.parametrize("command", NAMES)
    def test_it_never_replaces_the_text(
        self, cli: Cli, trained: Path, tmp_path: Path, command: str
    ) -> None:
        text = tmp_path / "text.html"
        text.write_text(make_prose(300), encoding="utf-8")
        words = [text, "--run", tmp_path / "run"] if command == "compare" else [
            trained, "--text", text
        ]  # fmt: skip
        done = cli(command, *words, "--report", text)
        assert done.code == 2
        assert done.err == (
            f"charrnn: --report {text} would overwrite what is read: give another file\n"
        )
        assert text.read_text(encoding="utf-8") == make_prose(300)

    @pytest.mark.parametrize("command", ["compare", "evaluate", "inspect"])
    def test_it_never_joins_the_text(
        self, cli: Cli, trained: Path, tmp_path: Path, command: str
    ) -> None:
        """In a folder that is read as text, a page would change the text."""
        folder = tmp_path / "texts"
        folder.mkdir()
        (folder / "text").write_text(make_prose(300), encoding="utf-8")
        words = [folder, "--run", tmp_path / "run"] if command == "compare" else [
            trained, "--text", folder
        ]  # fmt: skip
        for option in ("--report", "--per-char")[: 1 + (command == "evaluate")]:
            done = cli(command, *words, option, folder / "page.html")
            assert (done.code, done.out) == (2, "")
            assert done.err == (
                f"charrnn: {option} {folder}/page.html may become part of {folder}, which "
                "is or was read as text: give a file elsewhere\n"
            )
        assert [path.name for path in folder.iterdir()] == ["text"]

    @pytest.mark.parametrize("name", [".", "*.html"])
    @pytest.mark.parametrize("resume", [False, True])
    def test_nor_does_that_of_a_comparison_where_the_text_is_found(
        self, cli: Cli, tmp_path: Path, name: str, resume: bool
    ) -> None:
        """It may be found in a folder or by a pattern, also by a resumed comparison."""
        (tmp_path / "texts").mkdir()
        text, run = tmp_path / "texts" / "text.html", tmp_path / "run"
        text.write_text(make_prose(300), encoding="utf-8")
        if resume:
            run.mkdir()
            plan = Plan(texts=(f"{text.parent}/{name}",), steps=1)
            (run / "comparison.json").write_text(json.dumps(plan.to_dict()))
        words = ("--resume",) if resume else (text.parent / name, "--steps", 1)
        done = cli("compare", *words, "--run", run, "--report", text)
        assert (done.code, done.out) == (2, "")
        assert f"--report {text} would overwrite what is read" in done.err
        assert text.read_text(encoding="utf-8") == make_prose(300)
        assert not [path for path in run.glob("*") if path.is_dir()], "no run was begun"

    @pytest.mark.parametrize(
        ("report", "begins"),
        [
            ("out/page.html", True),
            ("page.html", False),
            ("link.html", False),
            ("out/link.html", False),
            ("texts/page.html", False),
        ],
    )
    def test_that_of_a_comparison_may_lie_in_its_folder(
        self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: str,
        begins: bool,
    ) -> None:  # fmt: skip
        """That folder is not read as text; but no link may lead into it or out of it."""
        watch = mock.Mock(side_effect=UsageError("it has begun"))
        monkeypatch.setattr("charrnn.commands.watching.watch_comparison", watch)
        monkeypatch.chdir(tmp_path)
        for folder in ("out", "texts"):
            Path(folder).mkdir()
        Path("texts/text").write_text(make_prose(300), encoding="utf-8")
        Path("link.html").symlink_to("out/linked.html")
        Path("out/link.html").symlink_to("../linked.html")
        done = cli("compare", ".", "--run", "out", "--steps", 1, "--report", report, "--quiet")
        would = f"--report {report} may become part of {tmp_path}, which is or was read as text"
        assert ("it has begun" if begins else would) in done.err

    @pytest.mark.parametrize("name", ["page.html", "link.html"])
    def test_it_is_not_where_the_prices_go(
        self, cli: Cli, trained: Path, tmp_path: Path, name: str
    ) -> None:
        page = tmp_path / "page.html"
        (tmp_path / "link.html").symlink_to(page)
        words = ("--per-char", tmp_path / name, "--report", page)
        done = cli("evaluate", trained, "--part", "valid", *words)
        assert (done.code, done.out) == (2, "")
        assert done.err == (
            f"charrnn: --report and --per-char both write {page}: give another file\n"
        )
        assert not page.exists()


CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


in_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    assert CHROMIUM is not None
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.get("about:blank")  # leave the start page, which makes requests of its own
    yield driver
    driver.quit()


def show(
    browser: webdriver.Chrome, path: Path, *, width: int = 1400, scheme: str = "light",
    media: str = "screen", forced: str = "none",
) -> None:  # fmt: skip
    """Open a page in a window of this width."""
    features = {"prefers-color-scheme": scheme, "forced-colors": forced}
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": media, "features": [{"name": n, "value": v} for n, v in features.items()]},
    )
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())


def marks() -> dict[str, str]:
    """Return the style of each class of a coloured text."""
    found: dict[str, str] = {}
    rules = r"((?:\.(?:bits|up|down)-\d(?:, )?)+) \{([^}]*)\}"
    for line in re.sub(r"\} (?=\.)", "}\n", STYLE).splitlines():
        if rule := re.match(rules, line):
            for name in rule[1].split(", "):
                found[name[1:]] = found.get(name[1:], "") + rule[2]
    assert len(found) == 4 + 2 * SHADES
    return found


@pytest.mark.parametrize("scheme", [0, 1])
def test_a_coloured_text_can_be_read_at_every_level(scheme: int) -> None:
    declared = re.findall(r"--([\w-]+): (#\w{6}|\d+ \d+ \d+)[;\n]", STYLE)
    assert len(declared) == 2 * len(dict(declared)), "light, then dark"
    named = dict(declared[scheme * len(declared) // 2 :][: len(declared) // 2])
    for name, style in marks().items():
        background = re.search(r"background: rgb\(var\(--(\w+)\) / ([\d.]+)\)", style)
        assert (background is None) == (name in ("bits-0", "bits-4"))
        for below in ("raised", "paper"):  # in a text, and in its legend
            paper = [*bytes.fromhex(named[below][1:])]
            if background:
                over, share = map(int, named[background[1]].split()), float(background[2])
                paper = [
                    round(share * a + (1 - share) * b) for a, b in zip(over, paper, strict=True)
                ]
            ink = named["muted" if name == "bits-0" else "ink"]
            if name == "bits-4":
                ink, paper = named["on-loud"], [*bytes.fromhex(named["loud"][1:])]
            assert contrast(ink, paper) >= 4.5, (name, below)


def test_levels_and_signs_differ_without_hues() -> None:
    """In the side and width of a line, or in weight, besides in lightness."""

    def seen(name: str) -> list[str]:
        return re.findall(r"inset 0 -?\d+px|font-weight: \d+", marks()[name])

    assert seen("bits-0") == []
    different = [seen(f"bits-{level}") for level in (0, 2, 3, 4)]
    assert all(one not in different[:n] for n, one in enumerate(different))
    for shade in range(2, SHADES + 1):
        assert (
            seen(f"up-{shade}") == [one.replace("0 ", "0 -") for one in seen(f"down-{shade}")] != []
        )


@in_browser
def test_colours_that_mean_something_are_never_forced(
    browser: webdriver.Chrome, pages: Pages
) -> None:
    """Nor the ink on them: a system's own palette would make all levels alike."""

    def shown(scheme: str, forced: str) -> list[str]:
        show(browser, pages.inspect, scheme=scheme, forced=forced)
        return list(
            browser.execute_script(
                """const found = document.querySelectorAll('.coloured, .coloured *, .swatch');
                const style = e => getComputedStyle(e);
                return [...found].map(e => style(e).color + style(e).backgroundColor)"""
            )
        )

    for scheme in ("light", "dark"):
        colours = shown(scheme, "none")
        assert len(set(colours)) > 10
        assert shown(scheme, "active") == colours


@in_browser
def test_a_phone_shows_numbers_beside_long_names(
    browser: webdriver.Chrome, trained: Path, tmp_path: Path
) -> None:
    """What the rows are about stays in sight where the table is scrolled."""
    run, report = tmp_path / "runs-of-today" / "tinyshakespeare-lstm", tmp_path / "page.html"
    shutil.copytree(trained, run)
    done = run_cli("evaluate", run, "--part", "valid", "--report", report)
    assert done.code == 0, done.err
    show(browser, report, width=400)
    name, cell, after = browser.execute_script(
        """const table = document.querySelector('.scroll');
        const [name, cell] = table.querySelectorAll('tbody th, tbody td');
        const sides = e => { const box = e.getBoundingClientRect(); return [box.left, box.right]; };
        const before = [sides(name), sides(cell)];
        table.scrollLeft = 200;
        return [...before, sides(name)]"""
    )
    assert name == after
    assert cell[1] < 400


def messages(browser: webdriver.Chrome, kind: str) -> list[str]:
    """Return what the browser has logged since the last call."""
    return [row["message"] for row in browser.get_log(kind)]


def colours(browser: webdriver.Chrome) -> list[list[int]]:
    """Return the computed colours of the page's paper, its text and a figure's text."""
    found = browser.execute_script(
        """const style = getComputedStyle;
        return [style(document.body).backgroundColor, style(document.body).color,
          style(document.querySelector('svg text')).fill]"""
    )
    return [[int(part) for part in re.findall(r"\d+", colour)[:3]] for colour in found]


@in_browser
@pytest.mark.parametrize("name", NAMES)
class TestInABrowser:
    def test_nothing_leaves_the_page_and_nothing_fails(
        self, browser: webdriver.Chrome, pages: Pages, name: str
    ) -> None:
        path: Path = getattr(pages, name)
        messages(browser, "performance")
        show(browser, path)
        events = [json.loads(row)["message"] for row in messages(browser, "performance")]
        asked = {
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        }
        assert asked == {path.as_uri()}
        assert messages(browser, "browser") == []

    def test_figures_and_tables_are_there(
        self, browser: webdriver.Chrome, pages: Pages, name: str
    ) -> None:
        show(browser, getattr(pages, name))
        sizes = browser.execute_script(
            """return [...document.querySelectorAll('svg, table, pre')].map(e => {
              const box = e.getBoundingClientRect();
              return [e.tagName, box.width, box.height]; })"""
        )
        kinds = Counter(kind.lower() for kind, _, _ in sizes)
        least = {"compare": (11, 10, 4), "evaluate": (4, 2, 2), "inspect": (10, 5, 3)}[name]
        for kind, count in zip(("svg", "table", "pre"), least, strict=True):
            assert kinds[kind] >= count
        assert all(width > 100 and height > 40 for _, width, height in sizes)
        # What is drawn and written stays within its figure.
        outside = browser.execute_script(
            """return [...document.querySelectorAll('svg')].flatMap(svg => {
              const box = svg.getBoundingClientRect();
              return [...svg.querySelectorAll('text')].filter(t => {
                const b = t.getBoundingClientRect();
                return b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1
                  || b.bottom > box.bottom + 1; }).map(t => t.textContent); })"""
        )
        assert outside == []
        for text in ("nats per character", "k, characters back")[: 2 if name != "evaluate" else 1]:
            assert text in browser.find_element("tag name", "main").text

    @pytest.mark.parametrize("width", [320, 360, 768, 1400])
    def test_it_fits_any_width(
        self, browser: webdriver.Chrome, pages: Pages, name: str, width: int
    ) -> None:
        show(browser, getattr(pages, name), width=width)
        over, boxes = browser.execute_script(
            """return [document.documentElement.scrollWidth - document.documentElement.clientWidth,
              [...document.querySelectorAll('.scroll, pre, svg, p, h1')].map(
                e => e.getBoundingClientRect().right)]"""
        )
        assert over == 0
        assert max(boxes) <= width

    def test_it_follows_light_and_dark(
        self, browser: webdriver.Chrome, pages: Pages, name: str
    ) -> None:
        for scheme in ("light", "dark"):
            show(browser, getattr(pages, name), scheme=scheme)
            paper, ink, figure = colours(browser)
            assert figure == ink
            assert (sum(paper) > 700, sum(ink) < 150) == (scheme == "light",) * 2
            contrasts = browser.execute_script(
                """const value = n => getComputedStyle(document.body).getPropertyValue(n);
                return ['--ink', '--muted', '--series-0', '--series-1', '--series-2', '--series-3',
                  '--series-4', '--series-5'].map(value)"""
            )
            for colour in contrasts:
                assert contrast(colour, paper) >= 4.5, colour

    def test_print_is_black_on_white_and_whole(
        self, browser: webdriver.Chrome, pages: Pages, name: str
    ) -> None:
        show(browser, getattr(pages, name), scheme="dark", media="print", width=720)
        paper, ink, figure = colours(browser)
        assert paper == [255, 255, 255]
        assert sum(ink) < 150
        assert figure == ink
        assert browser.execute_script(
            "return [...document.querySelectorAll('.scroll')].every("
            "e => e.scrollWidth <= document.documentElement.clientWidth)"
        )
        ends = browser.execute_script(
            """return [...document.querySelectorAll('.note + .scroll, .note + .tables')].map(
              e => getComputedStyle(e.previousElementSibling).breakAfter)"""
        )
        assert {"avoid"} >= set(ends), "what explains a table is on its page"
        assert bool(ends) == (name == "inspect")
        printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
        assert printed.startswith(b"%PDF")
