"""Benchmarks of speed and quality; each prints what it ran and on which machine."""
