import os

import pytest

# The tests must not depend on the threads that a shell sets, which count from the first import of
# torch on.
for name in [*os.environ]:
    if name.startswith(("GOMP_", "KMP_", "OMP_", "MKL_NUM_", "MKL_DOMAIN_NUM_", "MKL_DYNAMIC")):
        del os.environ[name]

pytest.register_assert_rewrite("tests.pages", "tests.reliability.runs", "tests.small")
