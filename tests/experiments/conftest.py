"""Commands set up their process; here they run in the tests' own, which must come out as it was."""

import pytest
import torch


@pytest.fixture(autouse=True)
def subnormal_numbers_come_back():
    yield
    torch.set_flush_denormal(False)
