"""Workers share the cores: torch has one thread in each process, also in those that tests start, as under make."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported anywhere
