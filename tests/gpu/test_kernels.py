"""Every kernel against its twin on a real GPU: the tests of the interpreter, collected here once more."""

from tests.unit.kernels.test_interpreted import *  # noqa: F403
