"""Route the gradients of any ``nn.Module``: the label of an example, or position, decides which sites learn from it.

A site is a named place in the model. Shapes: ``B`` examples, ``T`` positions, ``D`` units, ``S`` sites.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from routed_rl.routing.attachment import as_hook, check_hooks_when_compiled, replace_forward
from routed_rl.routing.exclusion import excluded
from routed_rl.routing.gradient import route_gradient
from routed_rl.routing.layers import is_linear, linear_weight, weight_axis
from routed_rl.routing.mixing import ADVICE, mixing_layers
from routed_rl.routing.site import Mode, Site, check_site, check_units
from routed_rl.routing.table import RouteTable
from routed_rl.routing.taps import embedding_tap, linear_tap, route_units, silence_units

_ATTACHED: WeakKeyDictionary[nn.Module, GradientRouter] = WeakKeyDictionary()
"""Module → the router that is attached to it now."""


class GradientRouter:
    """Gradient routing (Cloud et al. 2024, section 3) for an existing model; the model's code stays as it is.

    Enter the router to attach it to the model. Then run every forward pass within ``router(labels)``, where
    ``labels`` are the labels of the batch::

        router = GradientRouter(model, {"fc1": Site(units=slice(0, 8))}, table)
        with router:
            for x, y, labels in batches:
                with router(labels):
                    loss_fn(model(x), y).backward()
                with router.excluded(optimizer):
                    optimizer.step()
                optimizer.zero_grad()

    The table gives each label a weight for each site. The mode says which gradient this weight multiplies:

    - ``"activation"`` (the paper): the gradient that flows back through the site, and so through all layers before
      it. The layers after the site, and paths around it, learn as usual.
    - ``"parameter"``: the gradient of the module's own parameters. Output units select rows of the weight, input
      units select columns. The layers before the module learn as usual. For linear layers (torch's, or GPT-2's) and
      :class:`torch.nn.Embedding`.
    - ``"forward"``: as ``"activation"``. In addition, weight 0 sets the activation to 0, so the weights that read it
      do not learn from it either.

    Weights may be fractions, greater than 1, or negative. docs/routing.md has a table of what each mode masks.

    A layer after a site that mixes examples, such as batch normalisation in training mode, carries one example's loss
    around another one's weights. The router warns of batch normalisation; :func:`mixed_sites` finds any such layer.

    Args:
        model: any module that is not compiled. What ``torch.compile(model)`` returned may be run in its place.
        sites: name → site.
        table: label → weight per column. It must have the column of every site.
        mode: ``"activation"``, ``"parameter"`` or ``"forward"``.

    Raises:
        ValueError: if there are no sites. For an unknown module, mode or column; the message names the nearest module.
            For units out of range, or a module that the mode cannot route. For tied parameters without ``tied=True``.
        RuntimeError: if the model is compiled.
    """

    def __init__(
        self, model: nn.Module, sites: Mapping[str, Site], table: RouteTable, mode: Mode = "activation"
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        if not sites:
            raise ValueError(f"sites must name at least one place in the model, got {sites!r}")
        _refuse_compiled(model)
        self.model, self.sites, self.table, self.mode = model, dict(sites), table, mode
        self._places: dict[tuple[str, str, int], list[str]] = {}  # (module, at, dim) → sites
        for name, site in self.sites.items():
            check_site(model, name, site, table, mode)
            module = site.module_name(name)
            place = (module, site.at, site.dim_in(model.get_submodule(module)))
            self._places.setdefault(place, []).append(name)
        self._column = {name: table.modules.index(site.column or name) for name, site in self.sites.items()}
        self._weights: dict[str, Tensor] | None = None
        self._reached: dict[str, bool] = {}
        self._taught: dict[str, Tensor] = {}
        self._undo: list[Callable[[], None]] = []
        self._warned = False

    # --- attaching ------------------------------------------------------------------------------

    def __enter__(self) -> GradientRouter:
        modules = {name: self.model.get_submodule(name) for name, _, _ in self._places}
        for name, module in modules.items():
            if module in _ATTACHED:
                raise RuntimeError(f"another router is still attached to {name!r}: leave its 'with' block first")
        _refuse_compiled(self.model)
        check_hooks_when_compiled()
        for layer, mixing in mixing_layers(self.model).items():
            self._undo.append(mixing.register_forward_pre_hook(as_hook(partial(self._warn_of_mixing, layer))).remove)
        for name, module in modules.items():
            _ATTACHED[module] = self
            if self.mode == "parameter":
                self._undo.append(self._replace_forward(name, module))
        for (name, at, dim), sites in self._places.items():
            if self.mode != "parameter":
                self._undo.append(self._hook(modules[name], at, dim, sites).remove)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._undo:
            self._undo.pop()()
        for name, _, _ in self._places:
            _ATTACHED.pop(self.model.get_submodule(name), None)

    @contextmanager
    def __call__(self, labels: Tensor | None = None, *, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Give the labels of one batch: forward passes within the block, and their backward passes, use them.

        Args:
            labels: integer ids of the table's labels, -1 for unlabelled. ``(B,)`` labels examples and ``(B, T)``
                positions: these are the leading dimensions of the tensor at each site. A tensor ``(B * T, D)``, as in
                OPT's MLPs, takes ``(B, T)`` too.
            weights: in place of labels, column of the table → weights ``(B,)`` or ``(B, T)``.

        Raises:
            ValueError: if labels are not integers or not in the table, or weights are not given for exactly the columns
                that the sites use. The model's forward pass raises it if their shape does not fit a site's tensor.
            RuntimeError: if the router is not attached, or within the block of another batch. Also at the end of the
                block, if no tensor reached a site.
        """
        if _ATTACHED.get(self.model.get_submodule(next(iter(self._places))[0])) is not self:
            raise RuntimeError("the router is not attached: enter it first with 'with router:'")
        if self._weights is not None:
            raise RuntimeError("another batch is being routed: leave its 'with' block first")
        if (labels is None) == (weights is None):
            raise ValueError(f"a batch needs either labels or weights, got {'neither' if labels is None else 'both'}")
        self._weights = self._of_labels(labels) if labels is not None else self._of_columns(dict(weights or {}))
        self._reached = dict.fromkeys(self.sites, False)
        for name, weight in self._weights.items():
            taught = (weight != 0).any()
            self._taught[name] = taught | self._taught[name] if name in self._taught else taught
        try:
            yield
            if missed := [name for name, reached in self._reached.items() if not reached]:
                raise RuntimeError(
                    f"no tensor reached the sites {missed}: the model does not use them for this batch, or another "
                    "model was run"
                )
        finally:
            self._weights = None

    def _of_labels(self, labels: Tensor) -> dict[str, Tensor]:
        table = self.table.weights(labels)
        return {name: table[..., column] for name, column in self._column.items()}

    def _of_columns(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        columns = {name: self.table.modules[column] for name, column in self._column.items()}
        if set(weights) != set(columns.values()):
            raise ValueError(
                f"weights must be given for exactly {sorted(set(columns.values()))}, got {sorted(weights)}"
            )
        return {name: weights[column].detach() for name, column in columns.items()}

    def _current(self, sites: Sequence[str], shape: torch.Size, dim: int) -> list[Tensor] | None:
        """Return the batch's weights for sites whose tensor has ``shape``; None if there is nothing to route."""
        if self._weights is None:
            if torch.is_grad_enabled():
                raise RuntimeError(
                    f"the model ran through the sites {list(sites)} without labels: run it in 'with router(labels):'"
                )
            return None
        leading = [size for i, size in enumerate(shape) if i != dim % len(shape)]
        weights = []
        for name in sites:
            self._reached[name] = True
            weight = self._weights[name]
            if weight.ndim == 2 and leading == [weight.numel()]:
                weight = weight.flatten()
            weights.append(weight)
            if list(weight.shape) != leading[: weight.ndim]:
                raise ValueError(
                    f"site {name!r}: labels of shape {tuple(weight.shape)} must match the leading dimensions "
                    f"{tuple(leading)} of the tensor at the site, which has shape {tuple(shape)}"
                )
        return weights

    def _warn_of_mixing(self, layer: str, module: nn.Module, args: Any) -> None:
        """Warn, once, if a layer mixes examples of different weights that have passed a site."""
        if self._weights is None or self._warned or not module.training or torch.compiler.is_compiling():
            return
        passed = [name for name, reached in self._reached.items() if reached]
        if mixed := [name for name in passed if bool((self._weights[name] != self._weights[name][:1]).any())]:
            self._warned = True
            warnings.warn(
                f"batch normalisation in {layer!r} mixes examples of different labels after the site {mixed[0]!r}, so "
                f"the loss of one example reaches the site through the others: {ADVICE}",
                stacklevel=2,
            )

    # --- routing --------------------------------------------------------------------------------

    def _hook(self, module: nn.Module, at: str, dim: int, sites: Sequence[str]) -> RemovableHandle:
        """Register a hook that routes the activations that enter or leave a module."""
        units = [self.sites[name].units for name in sites]
        silence = self.mode == "forward"

        def route(x: Tensor) -> Tensor:
            weights = self._current(sites, x.shape, dim)
            if weights is None:
                return x
            for name in sites:
                check_units(name, self.sites[name], x.shape[dim])
            if silence:
                x = silence_units(x, dim, units, weights)
            if units == [None] and dim % x.ndim == x.ndim - 1:
                return route_gradient(x, weights[0])
            return route_units(x, dim, units, weights)

        def on_input(module: nn.Module, args: tuple[Any, ...]) -> Any:
            if not args or not isinstance(args[0], Tensor):
                raise ValueError(
                    f"site {sites[0]!r}: the first positional argument of its module must be a tensor, "
                    f"got {type(args[0]).__name__ if args else 'no positional argument'}"
                )
            return (route(args[0]), *args[1:])

        def on_output(module: nn.Module, args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) and output else output
            if not isinstance(first, Tensor):
                raise ValueError(
                    f"site {sites[0]!r}: the output of its module must be a tensor or a tuple that begins with one, "
                    f"got {type(output).__name__}"
                )
            return (route(first), *output[1:]) if isinstance(output, tuple) else route(first)

        if at == "output":
            return module.register_forward_hook(as_hook(on_output))
        return module.register_forward_pre_hook(as_hook(on_input))

    def _replace_forward(self, name: str, module: nn.Module) -> Callable[[], None]:
        """Replace a module's forward by one with weighted parameter gradients; return a function that undoes it."""
        places = {at: sites for (place, at, _), sites in self._places.items() if place == name}
        rows, columns = list(places.get("output", [])), list(places.get("input", []))
        # A site without units means the whole module: its input and output sites are the same.
        rows += [site for site in columns if self.sites[site].units is None]
        columns = [site for site in columns if self.sites[site].units is not None]
        own, kinds = module.forward, (rows, columns, list(places.get("bias", [])))
        units = [[self.sites[site].units for site in sites] for sites in kinds]

        def linear(x: Tensor) -> Tensor:
            weights = self._current([site for sites in kinds for site in sites], x.shape, -1)
            if weights is None:
                return own(x)  # type: ignore[no-any-return]
            left = iter(weights)
            parts = [(of, [next(left) for _ in of]) for of in units]
            return linear_tap(x, linear_weight(module), module.bias, *parts)  # type: ignore[arg-type]

        def embedding(ids: Tensor) -> Tensor:
            weights = self._current(rows, (*ids.shape, 1), -1)  # type: ignore[arg-type]
            if weights is None:
                return own(ids)  # type: ignore[no-any-return]
            return embedding_tap(ids, module.weight, module.padding_idx, units[0], weights)  # type: ignore[arg-type]

        return replace_forward(module, linear if is_linear(module) else embedding)

    # --- exactness ------------------------------------------------------------------------------

    @contextmanager
    def excluded(self, optimizer: Optimizer) -> Iterator[None]:
        """Within the block, ``optimizer.step()`` does not change parameters that no data was allowed to teach.

        A site is excluded if all its weights were 0 in every batch since the last such block. Then the parameters that
        learn only through the site keep their bits, and so does their optimizer state:

        - for the whole output of a module: all parameters of the module;
        - for output units of a linear, convolution or embedding layer: their rows;
        - for the bias of a linear layer: the bias, or its entries for some units;
        - for input units, in the modes ``"parameter"`` and ``"forward"``: their columns.

        Under ``torch.distributed`` the weights must have been 0 in every process. Sites with ``tied=True`` are never
        excluded. See :func:`~routed_rl.routing.excluded`.
        """
        names = list(self._taught)
        taught = torch.stack([self._taught[name] for name in names]) if names else torch.zeros(0, dtype=torch.bool)
        if names and torch.distributed.is_available() and torch.distributed.is_initialized():
            flags = taught.to(torch.uint8)
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
            taught = flags.bool()
        whole: list[Tensor] = []
        entries: dict[Tensor, Tensor] = {}
        for name, on in zip(names, taught.tolist(), strict=True):
            if not on and not self.sites[name].tied:
                parameters, masks = self._owned(name)
                if not any(True for _ in self._module(name).parameters()):
                    warnings.warn(
                        f"the site {name!r} is at the {type(self._module(name)).__name__} "
                        f"{self.sites[name].module_name(name)!r}, which has no parameters, so excluded() keeps none "
                        "from changing: name the layer before it",
                        stacklevel=3,
                    )
                whole += parameters
                for parameter, mask in masks.items():
                    entries[parameter] = mask | entries[parameter] if parameter in entries else mask
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        whole = list({id(p): p for p in whole if id(p) in trained}.values())
        apart = {id(p) for p in whole}
        entries = {p: mask for p, mask in entries.items() if id(p) in trained and id(p) not in apart}
        with excluded(optimizer, whole, entries):
            yield
        self._taught.clear()

    def _module(self, name: str) -> nn.Module:
        return self.model.get_submodule(self.sites[name].module_name(name))

    def _owned(self, name: str) -> tuple[list[Tensor], dict[Tensor, Tensor]]:
        """Return the whole parameters, and the masks of parameter entries, that learn only through a site."""
        site, module = self.sites[name], self._module(name)
        if site.at == "bias" and site.units is None:
            return [module.bias], {}  # type: ignore[list-item]
        if site.units is None:
            whole = site.at == "output" or self.mode == "parameter"
            return (list(module.parameters()) if whole else []), {}
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or (site.at == "input" and self.mode == "activation"):
            return [], {}
        masks = {}
        bias = getattr(module, "bias", None) if site.at != "input" else None
        of_weight = [] if site.at == "bias" else [(weight, weight_axis(module, site.at))]
        for parameter, axis in (*of_weight, (bias, 0)):
            if parameter is not None:
                mask = torch.zeros(parameter.shape[axis], dtype=torch.bool, device=parameter.device)
                mask[site.units if isinstance(site.units, slice) else list(site.units)] = True
                shape = [-1 if i == axis else 1 for i in range(parameter.ndim)]
                masks[parameter] = mask.view(shape).expand(parameter.shape)
        return [], masks


def _refuse_compiled(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
            raise RuntimeError(
                f"the module {name or type(module).__name__!r} is compiled and would ignore the router: "
                "attach the router to the plain model"
            )
