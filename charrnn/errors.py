"""The mistakes a user can make: one message and one exit code each.

::

    CharrnnError            1   something outside the program is not as it must be
    ├── UsageError          2   an option that makes no sense
    ├── CorpusError         1   a text that cannot be read or decoded, that changed, or is too small
    │   └── NotTextError        a file that is no text, or cannot be read (in files.py)
    ├── VocabularyError     1   characters that the model does not know
    ├── CheckpointError     1   a file that is not a whole checkpoint of ours
    │   └── DamagedCheckpointError  its bytes are not as we wrote them (in checkpoint.py)
    │       └── NoCheckpointError   it never was one of ours (in checkpoint.py)
    ├── RunFolderError      1   a folder that is locked or has no run in it, or another one; a
    │   │                       result that cannot be written
    │   └── TakenFolderError    it is another run's by now
    └── NonFiniteError      1   a loss, gradient, weight, score or prediction that is no number

Every message is one line: what is wrong, where, and what to do. The command
line prints it after ``charrnn: `` and leaves with the exit code; whoever calls
the library catches ``CharrnnError``. A programmer's mistake is an ``assert``
or a plain ``ValueError``, never one of these.
"""

from __future__ import annotations

from typing import ClassVar


class CharrnnError(Exception):
    """A mistake that the user can mend; ``str(error)`` is the one line to show."""

    exit_code: ClassVar[int] = 1


class UsageError(CharrnnError):
    """An option, or a combination of options, that makes no sense."""

    exit_code: ClassVar[int] = 2


class CorpusError(CharrnnError):
    """A text that cannot be found, read or decoded, that changed, or is too small."""


class VocabularyError(CharrnnError):
    """Characters that the model's vocabulary does not have."""


class CheckpointError(CharrnnError):
    """A file that is not a whole, unharmed checkpoint of a format we know."""


class RunFolderError(CharrnnError):
    """A run's or comparison's folder, or a file in it, that cannot be used or written.

    Another process holds it, there is no run in it or another one, its contents are no use, or the
    system refuses. A result that cannot be written anywhere else is one, too.
    """


class TakenFolderError(RunFolderError):
    """A run's folder that another run has taken since: what is there is not this one's."""


class NonFiniteError(CharrnnError):
    """A loss, gradient, weight, score or prediction that is NaN or infinite."""
