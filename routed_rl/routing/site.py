"""Sites: the places in a model where gradients are routed, and the checks that the model has them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from routed_rl.routing.layers import CONVOLUTIONS, At, is_linear, size_name
from routed_rl.routing.table import RouteTable

Mode = Literal["activation", "parameter", "forward"]
Units = slice | Sequence[int] | None


@dataclass(frozen=True)
class Site:
    """A place in a model: some or all units of a module's input or output, or entries of its bias.

    Attributes:
        at: ``"output"`` or ``"input"`` of the module. A module with several inputs or outputs is routed at the first.
            Or ``"bias"``: the bias alone, of a linear layer in the mode ``"parameter"``. There ``"output"`` is the rows
            of the weight and their entries of the bias.
        units: the units, as a slice or a list of indices; None for all.
        module: the module's name in the model; None if the site has the module's name.
        column: the table column with the site's weights; None if the column has the site's name.
        dim: the tensor dimension that indexes the units; None for 1 at a convolution, and for the last elsewhere.
        tied: set to True to accept that other modules share this module's parameters. There they learn from all data.
    """

    at: At = "output"
    units: Units = None
    module: str | None = None
    column: str | None = None
    dim: int | None = None
    tied: bool = False

    def module_name(self, name: str) -> str:
        """Return the name of the module, given the site's name."""
        return name if self.module is None else self.module

    def dim_in(self, module: nn.Module) -> int:
        """Return the dimension that indexes the units in the tensor at this site."""
        if self.dim is not None:
            return self.dim
        return 1 if isinstance(module, CONVOLUTIONS) else -1


def find_module(model: nn.Module, name: str, context: str = "") -> nn.Module:
    """Return the module of this name; else raise a ValueError that starts with ``context`` and names the nearest."""
    modules = dict(model.named_modules())
    if name not in modules:
        near = difflib.get_close_matches(name, [known for known in modules if known], n=3, cutoff=0.0)
        raise ValueError(f"{context}the model has no module {name!r}; the nearest are {', '.join(near)}")
    return modules[name]


def check_units(name: str, site: Site, width: int) -> None:
    """Raise a ValueError unless the site selects at least one unit, and all its units are among ``width``."""
    units = site.units
    if units is None:
        return
    if isinstance(units, slice):
        inside = all(end is None or -width <= end <= width for end in (units.start, units.stop))
        chosen = len(range(width)[units])
    else:
        inside, chosen = all(0 <= unit < width for unit in units), len(units)
    if not inside or not chosen:
        raise ValueError(
            f"site {name!r}: units {units} must select at least one of the {width} units at its {site.at}, and no other"
        )


def check_site(model: nn.Module, name: str, site: Site, table: RouteTable, mode: Mode) -> None:
    """Raise a ValueError unless the model has the site, the table has its column, and the mode can route it."""
    wanted = site.module_name(name)
    module = find_module(model, wanted, f"site {name!r}: ")
    if site.at not in get_args(At):
        raise ValueError(f"site {name!r}: at must be one of {', '.join(get_args(At))}, got {site.at!r}")
    if site.at == "bias" and (mode != "parameter" or not is_linear(module) or module.bias is None):
        raise ValueError(
            f"site {name!r}: a bias is routed only in mode 'parameter', at a linear layer that has one, got mode "
            f"{mode!r} and {module}"
        )
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
                f"site {name!r}: mode 'parameter' routes only Linear and Embedding, but {wanted!r} is a "
                f"{type(module).__name__}; use mode 'activation'"
            )
        if isinstance(module, nn.Embedding) and (
            site.at == "input" or module.sparse or module.scale_grad_by_freq or module.max_norm is not None
        ):
            raise ValueError(
                f"site {name!r}: mode 'parameter' routes an Embedding only at its output, and only without sparse, "
                f"max_norm and scale_grad_by_freq, got at={site.at!r} and {module}"
            )
    inner = {id(parameter) for parameter in module.parameters()}
    outer = [
        full
        for full, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in inner and wanted and not full.startswith(f"{wanted}.")
    ]
    if outer and not site.tied:
        raise ValueError(
            f"site {name!r}: parameters of {wanted!r} are tied to {', '.join(outer)}, where they would learn from all "
            "data; if you want this, pass Site(tied=True)"
        )
