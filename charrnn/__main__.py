"""The command ``charrnn``, and ``python -m charrnn``."""

import signal
import sys


def main() -> None:
    """Run the command line.

    Ctrl-C during the imports ends the program silently; after them, ``cli.main`` handles it.
    """
    if sys.platform == "win32":
        sys.exit("charrnn: Windows lacks what it needs: use it in WSL (README.md)")
    if sys.stdout is not None and not hasattr(sys.stdout, "reconfigure"):  # None: it is closed
        # It would take over the notebook's signals and streams.
        sys.exit("charrnn: it needs a process of its own: in a notebook write !charrnn, not %run")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from charrnn import cli

    cli.main()


if __name__ == "__main__":
    main()
