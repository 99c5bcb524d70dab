"""Where to compute, and the fast paths of a CPU: C for this machine, and what calls it."""
