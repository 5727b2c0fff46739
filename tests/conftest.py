"""Workers share the cores: torch has one thread in each process, also in those that tests start, as under make.

No test asks the Hugging Face Hub for anything.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported anywhere
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is: a hub that cannot be reached is asked for a minute
