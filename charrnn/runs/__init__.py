"""A training from its start to its end, one or several compared."""
