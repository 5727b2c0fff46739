"""Modules that a user might write, in a temporary folder that is the working directory."""

import contextlib
import sys
import textwrap

import pytest

from routed_rl.plugins import installed_names

FLAT = """
from dataclasses import dataclass

from routed_rl.lm.losses import target_logits, target_losses
from routed_rl.lm.suppressors.suppressor import Suppressor, brief, forget_targets, mean, retain_targets
from {helper} import flatness


@dataclass(frozen=True)
class Flat(Suppressor):
    retain_weight: float = 1.0
    slow: bool = False
    margin: float | None = None

    recipe = brief(steps=2, learning_rate=3e-4)

    def loss(self, model, seed):
        def loss(trained, batch):
            logits = target_logits(trained, batch)
            forget = mean(flatness(logits), forget_targets, batch)
            return forget + self.retain_weight * mean(target_losses(logits, batch), retain_targets, batch)

        return loss
"""
HELPER = "def flatness(logits):\n    return logits.square().mean(dim=-1)\n"


@contextlib.contextmanager
def own_code(folder):
    """Within the block, the folder is the working directory, and what is imported from it is forgotten afterwards.

    Gives a function that writes a file there. A module of this name is then imported anew.
    """

    def write(name, text):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        forget(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "dont_write_bytecode", True)  # files that are edited within a second look the same
        yield write
        forget(folder)


def forget(folder):
    """Let Python import the modules of a folder anew, and look for installed packages anew, as a new process does."""
    installed_names.cache_clear()
    for name, module in list(sys.modules.items()):
        own = getattr(module, "__dict__", {})
        places = [own.get("__file__"), *(own.get("__path__") or ())]
        if any(str(place).startswith(str(folder)) for place in places if place):
            del sys.modules[name]
