"""The base class of unlearning procedures, which train a model in several stages or change its weights directly."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from torch import nn

from routed_rl.errors import UserError
from routed_rl.lm.suppressors import METHODS, Suppressor
from routed_rl.lm.suppressors.suppressor import UnlearningMethod

Stage = Callable[[nn.Module, np.ndarray, np.ndarray, Suppressor, int], nn.Module]
"""One training of a procedure: ``stage(model, forget, retain, method, seed)`` returns a trained copy of the model.

``forget`` and ``retain`` are numbers of documents. If ``retain`` is empty, batches have forget rows only. The reference
of a method is the model that the stage gets.
"""


@dataclass(frozen=True)
class Procedure(UnlearningMethod):
    """The settings of an unlearning procedure: a way to unlearn that is no single loss.

    Raises:
        UserError: for a number that is negative or not finite.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise UserError(f"{field.name} of {type(self).__name__} must be 0 or more, got {value}")

    @property
    @abstractmethod
    def stages(self) -> int:
        """How often :meth:`run` calls ``stage``."""

    @abstractmethod
    def run(self, model: nn.Module, stage: Stage, forget: np.ndarray, retain: np.ndarray, seed: int) -> nn.Module:
        """Return a model that has unlearned the forget set. It must be a copy; do not change ``model``.

        Args:
            model: a causal language model.
            stage: trains a copy of a model. It has the settings of :func:`~routed_rl.unlearning.unlearn`.
            forget: the numbers of the forget documents.
            retain: the numbers of the retain documents.
            seed: fixes all that is random.
        """


def made_suppressor(method: str | type[Suppressor] | Suppressor, option: str) -> tuple[Suppressor, str]:
    """Return a suppression method with its settings, and its short name; ValueError as :meth:`Registry.find`."""
    if isinstance(method, Suppressor):
        return method, METHODS.find(type(method), option).name
    found = METHODS.find(method, option)
    return found.kind(), found.name
