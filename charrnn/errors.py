"""The errors a user can fix: each has a one-line message and an exit code.

::

    CharrnnError            1   something outside the program is wrong
    ├── UsageError          2   an option that makes no sense
    ├── CorpusError         1   a text that cannot be read or decoded, that changed, or is too small
    │   └── NotTextError        a file that is not text, or cannot be read (in files.py)
    ├── VocabularyError     1   characters that are not in the model's vocabulary
    ├── CheckpointError     1   a file that is not an intact charrnn checkpoint
    │   └── DamagedCheckpointError  its bytes are not as charrnn wrote them (in checkpoint.py)
    │       └── NoCheckpointError   it never was a charrnn checkpoint (in checkpoint.py)
    ├── RunFolderError      1   a folder that is locked, holds no run or another run; a result
    │   │                       that cannot be written
    │   └── TakenFolderError    another run has taken the folder since
    └── NonFiniteError      1   a loss, gradient, weight, score or prediction that is not finite

Every message is one line: what is wrong, where, and what to do. The command
line prints it after ``charrnn: `` and exits with the exit code; callers of
the library catch ``CharrnnError``. A programming error is an ``assert``
or a plain ``ValueError``, never one of these.
"""

from __future__ import annotations

from typing import ClassVar


class CharrnnError(Exception):
    """An error that the user can fix; ``str(error)`` is the one line to show."""

    exit_code: ClassVar[int] = 1


class UsageError(CharrnnError):
    """An option, or a combination of options, that makes no sense."""

    exit_code: ClassVar[int] = 2


class CorpusError(CharrnnError):
    """A text that cannot be found, read or decoded, has changed, or is too small."""


class VocabularyError(CharrnnError):
    """Characters that are not in the model's vocabulary."""


class CheckpointError(CharrnnError):
    """A file that is not an intact checkpoint in a known format."""


class RunFolderError(CharrnnError):
    """A run's or comparison's folder, or a file in it, that cannot be used or written.

    Another process holds it, it holds no run or another run, its contents are unusable, or the
    system refuses. Also raised for a result elsewhere that cannot be written.
    """


class TakenFolderError(RunFolderError):
    """A run's folder that another run has taken since: its contents are no longer this run's."""


class NonFiniteError(CharrnnError):
    """A loss, gradient, weight, score or prediction that is NaN or infinite."""
