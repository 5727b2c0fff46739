"""Every column of a study's table has a meaning beside the table."""

import csv


def assert_described(study):
    """Compare ``results.columns.md`` with the header of ``results.csv``."""
    with (study / "results.csv").open() as table:
        header = next(csv.reader(table))
    lines = (study / "results.columns.md").read_text().splitlines()[4:]
    found = {name.strip().strip("`"): meaning.strip() for _, name, meaning, _ in (line.split("|") for line in lines)}
    assert list(found) == header
    missing = [name for name, meaning in found.items() if meaning in ("", "not described") or "{" in meaning]
    assert not missing, missing
