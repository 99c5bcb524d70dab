"""A new run, built from the user's choices; ``training.train`` then drives it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from charrnn import recipe
from charrnn.compute.device import multiplies_bf16, recurs_in_bf16
from charrnn.config import ModelConfig, TextChoices, TrainConfig
from charrnn.errors import UsageError, VocabularyError
from charrnn.network.model import CharModel
from charrnn.runs.assembling import assemble, lanes_of, refuse_too_large, refuse_validations
from charrnn.runs.run import Progress, Run
from charrnn.storage.checkpoint import find, load
from charrnn.storage.reading import (
    TextRecord,
    divide,
    learnt_before,
    most_learnt,
    readable,
    refuse_other_symbols,
    refuse_too_many_names,
    refuse_too_short,
    to_remember,
)
from charrnn.storage.runfolder import RunFolder
from charrnn.storage.trained import trained_model
from charrnn.text.corpus import Corpus, Part
from charrnn.text.decoding import BYTES
from charrnn.text.files import embedded_corpus
from charrnn.text.lookalikes import in_two_forms
from charrnn.text.not_text import Nameable
from charrnn.text.scanning import scan
from charrnn.text.vocabulary import MANY_UNKNOWN, Vocabulary, listed
from charrnn.wording import counted, joined, quoted, shown

#: With fewer held-out characters than this, their loss is mostly chance.
FEW = 500
#: What a checkpoint's weights determine about a model, besides its cell.
SHAPE = ("vocabulary", "layers", "hidden", "embedding")


def start(
    choices: recipe.Choices,
    text: TextChoices,
    *,
    folder: RunFolder,
    device: torch.device,
    init_from: Path | None = None,
    spooled: Path | None = None,
    keep: int = 1,
) -> Run:
    """Put a new run together.

    Args:
        choices: of the model and its training; the rules fill in the rest.
        text: what to read.
        folder: the run's, new and locked.
        device: where to compute.
        init_from: the checkpoint to take weights and vocabulary from.
        spooled: where standard input was stored, for the text "-".
        keep: how many earlier checkpoints to keep.

    Raises:
        CharrnnError: a choice, the text, the checkpoint or the folder is not usable.
    """
    pretrained = None if init_from is None else _Pretrained.load(init_from)
    if pretrained is not None:
        choices = pretrained.settle(choices, text)
    encoding = text.encoding
    if encoding is None:
        encoding = "utf-8" if pretrained is None else pretrained.texts[0].encoding
    nameable: Nameable = "any" if pretrained is None else "characters"
    corpus = scan(readable(text.texts, spooled) or embedded_corpus(), encoding, nameable)
    train, valid, test = divide(corpus, text, nameable)
    refuse_too_short(train, text)
    record = TextRecord.of(text, train, valid, test)
    refuse_too_many_names(record)
    if valid is None:
        refuse_validations(choices.training)
    notes = _about_text(corpus, valid, record, spooled)
    if pretrained is None:
        vocabulary = _new_vocabulary(train.counts, corpus.encoding, text.min_count)
    else:
        known = pretrained.vocabulary
        vocabulary = Vocabulary(known.characters, corpus.encoding, known.min_count)
        notes.append(_coverage(train.counts, vocabulary, pretrained.path))
        notes += _known_before(valid, test, pretrained)
    if valid is not None:
        trained = vocabulary.unknown_share(train.counts)
        notes += _unknown(valid.predicted.counts, vocabulary, trained)
    shape, config, said = _choose(choices, vocabulary, train, device)
    smaller = "--hidden, --embedding, --layers, " if pretrained is None else ""  # else settled
    more = ", --bptt or --dropout-masks" if choices.training.get("dropout_masks") else " or --bptt"
    instead = f"give a smaller {smaller}--batch-size{more}"
    refuse_too_large(shape, config, device, instead, is_planned=config.minutes is None)
    folder.keep = keep
    torch.manual_seed(config.seed)
    if pretrained is None:
        model = CharModel(shape)
    else:
        model = pretrained.model
        model.set_dropout(shape.dropout, shape.weight_drop)
        path, digest = str(pretrained.path.absolute()), pretrained.digest
        config = replace(config, init_from=path, init_sha256=digest)
    return assemble(
        model.to(device),
        vocabulary=vocabulary,
        config=config,
        train=train,
        lanes=lanes_of(train, vocabulary, config),
        valid=valid,
        progress=Progress(),
        folder=folder,
        text=record,
        learnt_before=() if pretrained is None else to_remember(pretrained.texts),
        notes=notes + said,
    )


@dataclass(frozen=True)
class _Pretrained:
    """The checkpoint that a run starts from."""

    path: Path
    model: CharModel
    vocabulary: Vocabulary
    texts: tuple[TextRecord, ...]
    """Texts that its weights were trained on, its own run's first."""
    digest: str | None
    """The SHA-256 that its file has of itself."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load it from a checkpoint, or a run's folder."""
        checkpoint = load(find(path))
        texts = (checkpoint.record("text", TextRecord), *learnt_before(checkpoint))
        return cls(path, *trained_model(checkpoint), texts, checkpoint.digest)

    def settle(self, choices: recipe.Choices, text: TextChoices) -> recipe.Choices:
        """Return the choices with the shape that its weights determine; refuse any other.

        Dropout is not part of that: it follows from text and budget.
        """
        config, chosen = self.model.config, recipe.given(choices.model)
        for name, value in recipe.given({"cell": choices.cell, **chosen}).items():
            has = getattr(config, name)
            if name in ("cell", *SHAPE) and value != has:
                raise UsageError(
                    f"--{name} {value}: the checkpoint of --init-from has {has}: leave it out"
                )
        if text.min_count is not None:
            raise UsageError(
                "--min-count and --init-from cannot be used together: the vocabulary is kept"
            )
        if text.encoding is not None:
            refuse_other_symbols(text.encoding, self.vocabulary, "the checkpoint of --init-from")
        shape = {name: getattr(config, name) for name in SHAPE}
        return replace(choices, cell=config.cell, model=shape | chosen)


def _new_vocabulary(counts: Mapping[int, int], encoding: str, min_count: int | None) -> Vocabulary:
    """Return the vocabulary of the training part."""
    if encoding == BYTES and min_count is not None:
        raise UsageError(
            "--min-count and --encoding bytes cannot be used together: every byte is known"
        )
    vocabulary = Vocabulary.from_counts(counts, encoding, min_count)
    if vocabulary.size < 2:
        raise VocabularyError(
            f"no character occurs {vocabulary.min_count} times in the training part: "
            "give a smaller --min-count"
        )
    return vocabulary


def _coverage(counts: Mapping[int, int], vocabulary: Vocabulary, path: Path) -> str:
    """Say how much of a training part is covered by the vocabulary of another text."""
    unknown = vocabulary.unknown_among(counts)
    characters, lacking = sum(counts.values()), sum(unknown.values())
    percent = 10_000 * (characters - lacking) // characters / 100  # rounded down: 100.00 means all
    lacks = f", and lacks {listed(unknown, vocabulary.characters)}" if unknown else ""
    advice = ""
    if lacking > MANY_UNKNOWN * characters:
        advice = "; it cannot learn to write those: a run without --init-from can"
    return (
        f"weights and vocabulary from {shown(path)}: it knows {percent:.2f} % "
        f"of the characters to train on{lacks}{advice}"
    )


def _about_text(
    corpus: Corpus, valid: Part | None, record: TextRecord, spooled: Path | None
) -> list[str]:
    """Say what is special about a text, and about what of it, or beside it, is held out.

    Args:
        corpus: the text.
        valid: the validation part, of this text or of another.
        record: of the text.
        spooled: where standard input was stored, if that was read.
    """
    notes = [*corpus.notes, *(valid.corpus.notes if valid and record.valid_texts else ())]
    notes += _line_ends(corpus)
    notes += _two_forms(corpus)
    if spooled is not None:
        notes = [note.replace(str(spooled), "standard input") for note in notes]
        notes.append("standard input cannot be read again: to resume, give the text as a file")
    if valid and record.valid_texts:
        notes += _used_elsewhere(valid, record)
    elif valid and valid.characters < FEW:
        unit = "byte" if corpus.encoding == BYTES else "character"
        notes.append(
            f"only {counted(valid.characters, unit)} are held out, so which checkpoint is best is "
            "mostly chance: hold out more, or none (--valid-share 0)"
        )
    return notes


def _line_ends(corpus: Corpus) -> list[str]:
    """Say how a text's lines end, unless all end in LF, and how to convert them."""
    returns, feeds = (corpus.counts.get(ord(end), 0) for end in "\r\n")
    if corpus.encoding == BYTES or not returns:
        return []
    ends, command = ("CRLF", r"tr -d '\r'") if returns <= feeds else ("CR", r"tr '\r' '\n'")
    which = f"{returns:,} of {feeds:,}" if returns < feeds else "the"
    # tr changes single bytes, and a character of utf-16 has two.
    tr = f", with {command} <FILE >NEW" if "\r".encode(corpus.encoding) == b"\r" else ""
    return [f"{which} line ends are {ends}, and \\r counts as a character: make them LF{tr}"]


def _two_forms(corpus: Corpus) -> list[str]:
    """Say which letters a text has in two forms, if any, and how to make them one."""
    letters = {} if corpus.encoding == BYTES else in_two_forms(corpus)
    if not letters:
        return []
    two, count = next(iter(letters.items()))
    one = unicodedata.normalize("NFC", two)
    more = len(letters) - 1
    others = f", and so {'is' if more == 1 else 'are'} {counted(more, 'other letter')}" * (more > 0)
    # uconv reads utf-8; other encodings may lack a letter in one of its forms.
    uconv = ", with uconv -x nfc <FILE >NEW" if corpus.encoding == "utf-8" else ""
    return [
        f"{quoted(one)} is one character {corpus.counts[ord(one)]:,} times, and {count:,} times it "
        f"is {joined([*map(quoted, two)], 'and')}{others}: the model learns each form apart; make "
        f"all of the text normal form NFC{uconv}"
    ]


def _used_elsewhere(valid: Part, record: TextRecord) -> list[str]:
    """Say how much of a separate validation text is also trained on or tested on, if any."""
    trained = record.shared(valid, record.fingerprint, record.train)
    tested = record.shared(valid, record.fingerprint, record.test) if record.test else 0
    if trained == valid.characters:
        return ["what --valid names is trained on: nothing is held out"]
    of = f"of the {counted(valid.characters, 'character')} that --valid names are"
    notes = []
    if trained:
        notes.append(f"{trained:,} {of} trained on, too: validations flatter the model")
    if tested:
        notes.append(
            f"{tested:,} {of} in the test part, too: they choose the checkpoint, which flatters "
            "its loss there"
        )
    return notes


def _known_before(valid: Part | None, test: Part | None, pretrained: _Pretrained) -> list[str]:
    """Say how much of the held-out text the initial checkpoint was trained on, if any."""
    parts = [part for part in (valid, test) if part is not None]
    shared = [most_learnt(part, pretrained.texts) for part in parts]
    if not any(number != 0 for number in shared):
        return []
    known = [number for number in shared if number is not None]
    some = f"{sum(known):,}" if len(known) == len(shared) else "some"
    characters = counted(sum(part.characters for part in parts), "character")
    return [
        f"{some} of the {characters} held out are what {shown(pretrained.path)} was trained on, "
        "and their loss flatters the model: hold out another text with --valid"
    ]


def _unknown(valid_counts: Mapping[int, int], vocabulary: Vocabulary, trained: float) -> list[str]:
    """Say how much of the held-out text the vocabulary does not know, if any.

    Args:
        valid_counts: the code points of the held-out text.
        vocabulary: the model's.
        trained: the share of the training text that it does not know.
    """
    unknown = vocabulary.unknown_among(valid_counts)
    if not unknown:
        return []
    characters, which = sum(valid_counts.values()), listed(unknown, vocabulary.characters)
    is_another = sum(unknown.values()) / characters > MANY_UNKNOWN >= trained
    return [
        f"the model does not know {sum(unknown.values()):,} of the "
        f"{counted(characters, 'character')} to predict in what is held out, and "
        f"each is charged as the unknown symbol and spelled out: {which}"
        + ("; hold out text like that trained on" if is_another else "")
    ]


def _choose(
    choices: recipe.Choices, vocabulary: Vocabulary, train: Part, device: torch.device
) -> tuple[ModelConfig, TrainConfig, list[str]]:
    """Return a new run's numbers, fitted to text and device, and notes on what falls short."""
    shape, config = recipe.choose(
        choices,
        vocabulary=vocabulary.size,
        characters=train.characters,
        device=device.type,
        bf16=recurs_in_bf16(device),
    )
    if config.precision == "bf16" and not multiplies_bf16(device):
        raise UsageError(
            "--precision bf16 needs a CPU with AVX512-BF16 or a CUDA GPU from capability 8.0 on: "
            "leave it out"
        )
    lanes, window, loss_last, said = recipe.fit_lanes(
        train.characters, config.batch_size, config.bptt, config.loss_last
    )
    config = replace(config, batch_size=lanes, bptt=window, loss_last=loss_last)
    notes = []
    # A plan of minutes may still choose some.
    may_be = config.dropout_by_plan and recipe.RULES[shape.cell].drops_units
    is_settled = not may_be or config.minutes is None
    if choices.training.get("dropout_masks") and not shape.dropout and is_settled:
        notes.append("--dropout-masks has no effect: there is no dropout")
    if said:
        notes.append(said)
    if choices.training.get("precision") is None:
        notes += _no_bf16(device)
    return shape, config, notes


def _no_bf16(device: torch.device) -> list[str]:
    """Say so where a GPU could train in bf16 but for the cuDNN that torch brings."""
    if not multiplies_bf16(device) or recurs_in_bf16(device):
        return []
    return [
        f"torch {torch.__version__} has a cuDNN without bf16 recurrences, so the run is in fp32, "
        "which is slower and has smaller defaults: torch builds for CUDA newer than 12.6 have a "
        "newer one"
    ]
