"""What is put into a module for the time of a ``with`` block: copies of the module do not have it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any, NoReturn

import torch
from torch import nn


class Attachment:
    """A function in a module, as a hook or in place of ``forward``, for the time of a ``with`` block.

    A deep copy of the module gets something else in this place. The module cannot be pickled: nobody would take the
    function out of the model that is loaded.
    """

    def __init__(self, call: Callable[..., Any], in_copies: Callable[[dict[int, Any]], Any]) -> None:
        self._call, self._in_copies = call, in_copies

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self._in_copies(memo)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "the model is routed or steered within a 'with' block: leave the block before you pickle the model, or "
            "save its state_dict()"
        )


def as_hook(call: Callable[..., Any]) -> Attachment:
    """Return a hook; its copies do nothing."""
    return Attachment(call, lambda memo: _nothing)


def replace_forward(module: nn.Module, call: Callable[[Any], Any]) -> Callable[[], None]:
    """Replace a module's forward, and return a function that undoes it. A copy of the module has its own forward."""
    before = vars(module).get("forward")

    def in_copies(memo: dict[int, Any]) -> Any:
        if before is not None:
            return copy.deepcopy(before, memo)
        return MethodType(type(module).forward, memo.get(id(module), module))

    module.forward = Attachment(call, in_copies)

    def undo() -> None:
        if before is None:
            del module.forward
        else:
            module.forward = before

    return undo


def check_hooks_when_compiled() -> None:
    """Make compiled code ask whether a module has hooks, before it runs.

    Else the code of a model without a router would also be used for a model of the same class with one.
    """
    if torch._dynamo.config.skip_nnmodule_hook_guards:
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()  # code that was compiled before does not ask


def _nothing(*_: Any) -> None:
    pass
