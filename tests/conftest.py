"""Workers share the cores: torch has one thread in each process, also in those that tests start, as under make.

No test asks the Hugging Face Hub for anything.
"""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported anywhere
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is: a hub that cannot be reached is asked for a minute
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every process that tests start would compile all modules again


def pytest_collection_finish(session):
    """Garbage is not looked for among the half a million objects that were imported, which takes a while each time."""
    gc.freeze()
