"""What is saved, and how it is found again: checkpoints, logs, the folder of a run."""
