"""Build a page: self-contained HTML, its style, and how it was made.

It is one file: nothing is loaded from elsewhere and no script runs in it. Whatever comes from a
text, a model or a path is escaped here, by ``safe``: callers pass it unescaped.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version

import torch

from charrnn import __version__
from charrnn.command_words import command_line
from charrnn.compute.device import is_here
from charrnn.compute.machine import machine, worker
from charrnn.compute.processor import processor
from charrnn.views.figures import DARK, LIGHT, SANS
from charrnn.wording import joined, printable

#: Words in a table longer than this may be wrapped, in letters.
LONG = 16


@dataclass(frozen=True)
class Origin:
    """How a page was made."""

    command: str
    machine: str
    made: str
    """Date and time, in UTC."""
    version: str = __version__


def origin(
    command: Sequence[str], device: torch.device, trained_by: Collection[str] = ()
) -> Origin:
    """Return the origin of a page that is made now, on this machine.

    Args:
        command: the words of the command line.
        device: where the models computed; for a finished comparison, perhaps another machine's.
        trained_by: what trained a comparison's runs, as in ``RunResult``.
    """
    here = f"{machine()}, matplotlib {version('matplotlib')}"
    by = dict.fromkeys(trained_by)
    if by.keys() - {worker(processor(), torch.get_num_threads())}:
        where = f"{device.type}: {joined(list(by), 'and')}; this page was made on {here}"
    elif not is_here(device.type):
        where = f"{device.type} of another machine; this page was made on {here}"
    else:
        where = f"{device.type}: {here}"
    return Origin(
        command=command_line(command),
        machine=where,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def document(
    command: str, title: str, lead: str, text: str, sections: Sequence[str], origin: Origin
) -> str:
    """Return the whole page.

    Args:
        command: the name of the command that makes it.
        title: its heading.
        lead: the result, in a sentence or two below the title.
        text: what was read, in words.
        sections: made by ``section``, in order; each is linked at the top.
        origin: how the page was made.
    """
    facts = {
        "Command": f"<code>{safe(origin.command)}</code>",
        "Text": safe(text),
        "Machine": safe(origin.machine),
        "Made": safe(f"{origin.made} by charrnn {origin.version}"),
    }
    made = "".join(f"<dt>{name}</dt><dd>{fact}</dd>\n" for name, fact in facts.items())
    heads = re.findall(r'^<h2 id="([a-z-]+)-head">(.*)</h2>$', "".join(sections), re.MULTILINE)
    links = "".join(f'<a href="#{anchor}">{head}</a>\n' for anchor, head in heads)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{safe(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header><p class="kicker">charrnn {command}</p><h1>{safe(title)}</h1>\n'
        f'<p class="lead">{safe(lead)}</p>\n<nav aria-label="Sections">\n{links}</nav></header>\n'
        "<main>\n"
        f"{''.join(sections)}"
        f"{section('How this was made', f'<dl>{made}</dl>')}"
        "</main>\n</body>\n</html>\n"
    )


# HTML ------------------------------------------------------------------------------------


def safe(text: str) -> str:
    """Return text that is safe anywhere in a page: without markup or control characters."""
    return escape(printable(text))


def section(title: str, *parts: str) -> str:
    """Return a section; its title, letters and spaces only, is its anchor, too."""
    anchor = title.lower().replace(" ", "-")
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-head">\n'
        f'<h2 id="{anchor}-head">{safe(title)}</h2>\n{"".join(parts)}</section>\n'
    )


def heading(title: str) -> str:
    """Return the heading of a part of a section."""
    return f"<h3>{safe(title)}</h3>\n"


def figure(
    panels: Sequence[tuple[str, str]],
    caption: str,
    *,
    small: bool = False,
    nothing: str = "no number is above zero",
) -> str:
    """Return a figure of titled panels with its caption.

    Args:
        panels: each one's title and its SVG.
        caption: what they show, and what numbers beside them mean.
        small: whether the panels are small, with many in a row.
        nothing: why there are no panels, if there are none.
    """
    if not panels:
        return note(f"There is nothing to draw: {nothing}. {caption.strip()}")
    shown = "".join(f'<div class="panel">{heading(title)}{svg}</div>\n' for title, svg in panels)
    size = "small" if small else "one" if len(panels) == 1 else "two"
    return (
        f'<figure><div class="panels {size}">\n{shown}</div>\n'
        f"<figcaption>{safe(caption.strip())}</figcaption></figure>\n"
    )


def table(
    lines: Sequence[Sequence[str]], word_columns: int, title: str = "", heads: int | None = None
) -> str:
    """Return a table that scrolls by itself if it is too wide.

    Args:
        lines: the head and the rows.
        word_columns: how many leading columns hold words; the others hold numbers.
        title: what it is about, unless its section says it.
        heads: how many leading columns tell the rows apart; None: those that hold words, at least
            one.
    """
    heads = max(1, word_columns) if heads is None else heads

    def cell(number: int, text: str, head: str = "") -> str:
        tag = head or ('th scope="row"' if text and number < heads else "td")
        kind = "number" if number >= word_columns else "long" if len(text) > LONG else ""
        kind = f' class="{kind}"' if kind else ""
        return f"<{tag}{kind}>{safe(text)}</{tag.split()[0]}>"

    head, *rows = lines
    said = f"<caption>{safe(title)}</caption>" if title else ""
    name = f"Table: {safe(title)}" if title else "Table"
    top = "".join(cell(n, text, 'th scope="col"') for n, text in enumerate(head))
    body = "".join(
        "<tr>" + "".join(cell(n, text) for n, text in enumerate(row)) + "</tr>\n" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{name}"><table>{said}'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def tables(
    titled: Iterable[tuple[str, Sequence[Sequence[str]]]],
    word_columns: int,
    heads: int | None = None,
) -> str:
    """Return tables side by side, as far as there is room; see ``table``.

    Args:
        titled: each one's title and its lines.
        word_columns: how many leading columns hold words.
        heads: how many tell the rows apart, as for ``table``.
    """
    shown = "".join(table(lines, word_columns, title, heads) for title, lines in titled)
    return f'<div class="tables">\n{shown}</div>\n'


def beside(figure: str, tables: str) -> str:
    """Return a figure and its tables side by side, if there is room."""
    return f'<div class="beside">\n{figure}{tables}</div>\n'


def bullets(sentences: Iterable[str]) -> str:
    """Return sentences as a list; an empty string if there are none."""
    items = "".join(f"<li>{safe(sentence)}</li>\n" for sentence in sentences)
    return f'<ul class="says">\n{items}</ul>\n' if items else ""


def note(sentence: str) -> str:
    """Return an explanatory paragraph."""
    return f'<p class="note">{safe(sentence)}</p>\n'


def texts(titled: Iterable[tuple[str, str]]) -> str:
    """Return texts, each a title and its HTML, side by side as far as there is room."""
    shown = "".join(f'<div class="text">{heading(title)}{text}</div>\n' for title, text in titled)
    return f'<div class="texts">\n{shown}</div>\n'


def plain(text: str, label: str) -> str:
    """Return a preformatted text, with a label for screen readers."""
    return _preformatted(safe(text), label)


def coloured(pieces: Iterable[tuple[str, str]], label: str) -> str:
    """Return a preformatted text of pieces, each in its CSS class.

    Args:
        pieces: each one's text and class, which may be empty; neighbours of the same class share
            an element.
        label: for screen readers.
    """
    spans = []
    for name, group in itertools.groupby(pieces, key=lambda piece: piece[1]):
        text = safe("".join(piece for piece, _ in group))
        spans.append(f'<span class="{name}">{text}</span>' if name else text)
    return _preformatted("".join(spans), label, ' class="coloured"') + "\n"


def _preformatted(inside: str, label: str, attributes: str = "") -> str:
    """Return preformatted HTML, each line in the direction of its script.

    Its language is not known: it is not the page's, in which it would be read aloud or translated.
    """
    # HTML drops a line break directly after the tag: it gets one to drop, not the text's own.
    kind = 'role="group" dir="auto" lang="" translate="no"'
    tag = f'<pre{attributes} {kind} aria-label="{safe(label)}">'
    return f"{tag}\n{inside}</pre>"


def legend(items: Iterable[tuple[str, str]], before: str) -> str:
    """Return a legend: introductory words, then each colour's class with its meaning."""
    shown = " ".join(f'<span class="{name} swatch">{safe(what)}</span>' for name, what in items)
    return f'<p class="legend">{safe(before)}{shown}</p>\n'


STYLE = (
    f"""
:root {{
  color-scheme: light dark;
  {SANS}
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  {LIGHT}
  --raised: #f5f6f7;
  --warm: 214 94 0; --cool: 0 98 168; --loud: #a82a00; --on-loud: #ffffff;
}}
@media screen and (prefers-color-scheme: dark) {{
  :root {{
    {DARK}
    --raised: #1b2025;
    --warm: 232 128 46; --cool: 70 160 240; --loud: #ffb27a; --on-loud: #121518;
  }}
}}
"""
    """\
* { box-sizing: border-box; }
body {
  margin: 0; padding: 2rem clamp(1rem, 4vw, 3rem) 3rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 var(--sans); overflow-wrap: break-word;
}
header, main { max-width: 70rem; margin: 0 auto; }
h1 { font-size: clamp(1.6rem, 4vw, 2.5rem); line-height: 1.15; margin: 0 0 .6rem; }
h2 { font-size: 1.45rem; line-height: 1.2; margin: 0 0 1rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
.kicker { margin: 0 0 .3rem; color: var(--muted); font: .9rem var(--mono); }
.lead { font-size: 1.2rem; max-width: 46rem; margin: 0; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin-top: 1.2rem; font-size: .93rem; }
nav a { color: var(--series-1); }
section { border-top: 1px solid var(--grid); margin-top: 2.4rem; padding-top: 1.6rem; }
figure { margin: 0 0 1.4rem; }
.panels { display: grid; gap: 1.4rem 2rem; }
.panels.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.panels.one, .panels.two > .panel { max-width: 34rem; }
.beside { display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: flex-start; }
.beside > figure { flex: 1 1 24rem; max-width: 34rem; }
.beside > .tables { flex: 0 1 auto; min-width: 0; max-width: 100%; }
.tables { display: flex; flex-wrap: wrap; gap: 0 3.5rem; align-items: flex-start; }
.panels.small { grid-template-columns: repeat(auto-fill, minmax(min(46%, 13.5rem), 1fr));
  gap: 1.2rem; }
.panels.small > .panel { max-width: 15rem; }
.panel { min-width: 0; break-inside: avoid; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-variant-numeric: tabular-nums; }
.note + .scroll, .note + .tables { margin-top: .9rem; }
figcaption, .note { color: var(--muted); font-size: .93rem; max-width: 46rem; margin: .7rem 0 0; }
.scroll { overflow-x: auto; margin: 0 0 1rem; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .25rem .85rem .25rem 0; text-align: left; white-space: pre; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; border-bottom: 1px solid var(--muted);
  white-space: normal; vertical-align: bottom; }
tbody th { font-weight: 400; }
tbody th:first-child { font-weight: 600; }
/* The first column stays in sight where the table is scrolled. */
th:first-child { position: sticky; left: 0; background: var(--paper); }
.long { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 7rem; max-width: 18rem; }
tbody tr + tr > * { border-top: 1px solid var(--grid); }
.number { text-align: right; }
.says { margin: 0 0 1rem; padding-left: 1.2rem; max-width: 46rem; }
.texts { display: grid; gap: 1.4rem 1.6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
.text { min-width: 0; }
pre {
  font: .85rem/1.6 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; margin: 0;
  padding: .8rem 1rem; background: var(--raised); border-radius: .4rem; tab-size: 4;
}
.coloured, .swatch { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.legend { margin: .7rem 0 1rem; font-size: .93rem; }
.swatch { padding: .1rem .45rem; border-radius: .2rem; font-family: var(--mono); }
/* Whoever sees no hues tells levels apart by lines and weight, and signs by a line's side. */
.bits-0 { color: var(--muted); }
.bits-2 { background: rgb(var(--warm) / .2); box-shadow: inset 0 -1px rgb(var(--warm)); }
.bits-3 { background: rgb(var(--warm) / .45); box-shadow: inset 0 -2px var(--ink); }
.bits-4 { background: var(--loud); color: var(--on-loud); font-weight: 700; }
.up-1 { background: rgb(var(--warm) / .12); } .down-1 { background: rgb(var(--cool) / .12); }
.up-2 { background: rgb(var(--warm) / .24); } .down-2 { background: rgb(var(--cool) / .24); }
.up-3 { background: rgb(var(--warm) / .36); } .down-3 { background: rgb(var(--cool) / .36); }
.up-4 { background: rgb(var(--warm) / .48); } .down-4 { background: rgb(var(--cool) / .48); }
.up-5 { background: rgb(var(--warm) / .6); } .down-5 { background: rgb(var(--cool) / .6); }
.up-2, .up-3 { box-shadow: inset 0 -1px var(--ink); }
.up-4, .up-5 { box-shadow: inset 0 -2px var(--ink); }
.down-2, .down-3 { box-shadow: inset 0 1px var(--ink); }
.down-4, .down-5 { box-shadow: inset 0 2px var(--ink); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .4rem 1.2rem;
  margin: 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
code { font: .9rem var(--mono); }
:focus-visible { outline: 2px solid var(--series-1); outline-offset: 2px; }
/* Here colours are data: a palette of the system's would level them. */
@media (forced-colors: active) {
  .coloured, .legend { forced-color-adjust: none; color: var(--ink); }
  .coloured { background: var(--raised); }
  .legend { background: var(--paper); }
}
@media (max-width: 40rem) {
  dl { grid-template-columns: minmax(0, 1fr); }
  dd { margin-bottom: .5rem; }
}
@media print {
  nav { display: none; }
  body { padding: 0; font-size: 10pt; }
  figure, .scroll, .text, tr { break-inside: avoid; }
  figure svg { max-height: 8.5in; }
  section { break-inside: auto; margin-top: 1.2rem; padding-top: .8rem; }
  h2, h3, .note:has(+ .scroll, + .tables) { break-after: avoid; }
  .panels.two { grid-template-columns: 1fr 1fr; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; } th, td { padding-right: .6rem; white-space: normal; }
  pre { font-size: 7.5pt; }
}
"""
)
