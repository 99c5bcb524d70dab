"""A text: its files, decoded, split, counted, and cut into lanes of ids."""
