"""A study's directory: ``study.json`` says what all runs in it share, so that no other study is mixed in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from routed_rl.runs import read_json, write_json
from routed_rl.runs.files import plain_json

STUDY = "study.json"


def check_study(out: Path, identity: Mapping[str, Any]) -> None:
    """ValueError unless the study of this identity may be started in the directory, or gone on with."""
    if (out / STUDY).exists():
        found = read_json(out / STUDY)
        if not isinstance(found, dict):
            raise ValueError(f"{str(out / STUDY)!r} says nothing of a study; name another --out")
        there = {"device": "cpu", **found}  # older ones do not say so
        here = plain_json(identity, "study")
        if other := sorted(name for name in {*there, *here} if there.get(name) != here.get(name)):
            of = [{name: study[name] for name in other if name in study} for study in (there, here)]
            raise ValueError(f"{str(out)!r} holds another study, of {of[0]}, not of {of[1]}; name another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{str(out)!r} is not empty and holds no study; name another --out")


def start_study(out: Path, identity: Mapping[str, Any]) -> None:
    """Mark the directory as this study's, unless it is already; :func:`check_study` comes first."""
    if not (out / STUDY).exists():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / STUDY, identity)
