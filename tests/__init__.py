import os

import pytest

# The tests must not depend on the threads that a shell sets, which count from the first import of
# torch on.
for name in [*os.environ]:
    if name.startswith(("GOMP_", "KMP_", "OMP_", "MKL_NUM_", "MKL_DOMAIN_NUM_", "MKL_DYNAMIC")):
        del os.environ[name]
# Threads of tests that run side by side are more than there are cores: one that waits must not
# keep a core busy. The C compiled by gcc, and torch, take a fifth less time with this.
os.environ["GOMP_SPINCOUNT"] = "0"

pytest.register_assert_rewrite("tests.pages", "tests.reliability.runs", "tests.small")
