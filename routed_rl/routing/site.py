"""Places in a model where gradients are routed, checked against the model they are in."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from routed_rl.routing.layers import CONVOLUTIONS, At, is_linear, size_name
from routed_rl.routing.table import RouteTable

Mode = Literal["activation", "parameter", "forward"]
Units = slice | Sequence[int] | None


@dataclass(frozen=True)
class Site:
    """A place in a model: some units of what goes into a module or comes out of it.

    Attributes:
        at: ``"output"`` or ``"input"`` of the module; the first, where there are several.
        units: which units, by slice or numbers; None for all.
        module: the module's name in the model; None if the site is called like it.
        column: the column of the table that says how much it learns; None if it is called like the site.
        dim: the dimension that units are numbered along; None for 1 at a convolution and the last anywhere else.
        tied: the module's parameters are also used elsewhere, and it is meant that they learn there from all data.
    """

    at: At = "output"
    units: Units = None
    module: str | None = None
    column: str | None = None
    dim: int | None = None
    tied: bool = False

    def module_name(self, name: str) -> str:
        """The module of a site of this name."""
        return name if self.module is None else self.module

    def dim_in(self, module: nn.Module) -> int:
        """The dimension of the units in what passes."""
        if self.dim is not None:
            return self.dim
        return 1 if isinstance(module, CONVOLUTIONS) else -1


def find_module(model: nn.Module, name: str, context: str = "") -> nn.Module:
    """The module of this name; ValueError, after ``context``, naming the nearest, if there is none."""
    modules = dict(model.named_modules())
    if name not in modules:
        near = difflib.get_close_matches(name, [known for known in modules if known], n=3, cutoff=0.0)
        raise ValueError(f"{context}the model has no module {name!r}; the nearest are {', '.join(near)}")
    return modules[name]


def check_units(name: str, site: Site, width: int) -> None:
    """ValueError unless a site's units are some of ``width``."""
    units = site.units
    if units is None:
        return
    if isinstance(units, slice):
        inside = all(end is None or -width <= end <= width for end in (units.start, units.stop))
        chosen = len(range(width)[units])
    else:
        inside, chosen = all(0 <= unit < width for unit in units), len(units)
    if not inside or not chosen:
        raise ValueError(f"site {name!r}: units {units} are not within the {width} units at its {site.at}")


def check_site(model: nn.Module, name: str, site: Site, table: RouteTable, mode: Mode) -> None:
    """ValueError unless the model has the site, the table its column, and the mode can route it."""
    wanted = site.module_name(name)
    module = find_module(model, wanted, f"site {name!r}: ")
    if site.at not in ("input", "output"):
        raise ValueError(f"site {name!r}: at must be 'input' or 'output', got {site.at!r}")
    if (site.column or name) not in table.modules:
        raise ValueError(
            f"site {name!r}: the table has no column {site.column or name!r}; it has {', '.join(table.modules)}"
        )
    size = size_name(module, site.at)
    if size is not None:
        check_units(name, site, getattr(module, size))
    if mode == "parameter":
        if not (is_linear(module) or isinstance(module, nn.Embedding)):
            raise ValueError(
                f"site {name!r}: mode 'parameter' knows Linear and Embedding, and {wanted!r} is {type(module).__name__}"
            )
        if isinstance(module, nn.Embedding) and (
            site.at == "input" or module.sparse or module.scale_grad_by_freq or module.max_norm is not None
        ):
            raise ValueError(
                f"site {name!r}: an Embedding is routed at its output, and not if sparse, with max_norm or scaled by "
                "frequency"
            )
    inner = {id(parameter) for parameter in module.parameters()}
    outer = [
        full
        for full, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in inner and wanted and not full.startswith(f"{wanted}.")
    ]
    if outer and not site.tied:
        raise ValueError(
            f"site {name!r}: parameters of {wanted!r} are tied to {', '.join(outer)}, where they learn from all data; "
            "say Site(tied=True) if that is meant"
        )
