"""The commands, and what they share: options, standard streams, signals, exit codes."""
