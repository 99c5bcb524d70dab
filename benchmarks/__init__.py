"""Measurements of speed and quality; each prints what it ran and on which machine."""

from charrnn.cli import spin_briefly

# As the program does; whom it is compared with waits the same way.
spin_briefly()
