"""What the options of several subjects share.

Parsing a command line imports the modules of options alone, so they import nothing heavy.
"""

from __future__ import annotations

from pathlib import Path

RUNS = Path("runs")
"""Where runs go unless told otherwise, below the working directory."""
