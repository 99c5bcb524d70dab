"""The network and how it learns: cells, model, optimiser, one update."""
