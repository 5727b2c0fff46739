"""What every study says of itself: what its columns mean, that it is finished, and what came out."""

import csv
import re

from routed_rl.experiments.overview.headlines import study_headline
from routed_rl.runs.overview import list_runs


def assert_described(study):
    """Compare ``results.columns.md`` with the header of ``results.csv``, and look at the study in a list of runs."""
    with (study / "results.csv").open() as table:
        header = next(csv.reader(table))
    lines = (study / "results.columns.md").read_text().splitlines()[4:]
    found = {name.strip().strip("`"): meaning.strip() for _, name, meaning, _ in (line.split("|") for line in lines)}
    assert list(found) == header
    missing = [name for name, meaning in found.items() if meaning in ("", "not described") or "{" in meaning]
    assert not missing, missing
    (row,) = list_runs(study, study_headline=study_headline).to_dict("records")
    assert (row["kind"], row["state"]) == ("study", "finished")
    assert re.fullmatch(r"(\d+) of \1 (runs|stages)", row["progress"]), row["progress"]
    assert re.search(r"\d\.\d{3}", row["result"]), row["result"]
