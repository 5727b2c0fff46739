"""Workers share the cores: torch has one thread in each process, also in those that tests start, as under make.

No test asks the Hugging Face Hub for anything.
"""

import gc
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported anywhere
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is: a hub that cannot be reached is asked for a minute
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every process that tests start would compile all modules again

import torch

if not torch.accelerator.is_available():
    # torch.manual_seed notes the whole call stack for each of them, in case that it is initialised later.
    for devices in (torch.cuda, torch.xpu, torch.mtia):
        devices.manual_seed_all = lambda seed: None


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Look for no garbage while all is imported, and later not among these half a million objects: that takes long."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Let denormals be numbers: a study that runs in the tests' process makes them 0, as it would in its own."""
    torch.set_flush_denormal(False)
