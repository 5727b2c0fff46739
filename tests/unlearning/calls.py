"""Single calls on a small model: each gives the same on one process and on many."""

import torch
from torch import Tensor, nn

from routed_rl.lm.corpora import Corpus
from routed_rl.unlearning import attack, undo, unlearn
from tests.lm.cases import LENGTH, TOKENIZER

METHODS = ("maxent", "npo", "rmu", "sam", "repselect", "lat", "layered")
"""With a reference model, its losses, frozen weights, another gradient, gradients of each term, gradients of hidden
states, and several stages."""
CALLS = [
    *METHODS,
    *("adapters", "adapters, merged", "half", "undo", "attack", "attack on adapters"),
]
SMALL = {"batch_size": 4, "length": LENGTH, "steps": 2, "progress": False}


def call_all(model: nn.Module, corpus: Corpus, shard: bool = False) -> dict[str, dict[str, Tensor]]:
    """Return the weights of each result, and of an attack the measured losses."""
    given = (model, TOKENIZER, corpus)
    options = {**SMALL, "shard": shard}
    rmu = {"method": "rmu", "depth": 1, **options}
    found = {
        name: unlearn(*given, **{**options, "method": name, **({"depth": 1} if name == "rmu" else {})})
        for name in METHODS
    }
    with_adapters = unlearn(*given, **rmu, rank=2, merge=False, gradient_checkpointing=True)
    found |= {
        "adapters": with_adapters,
        "adapters, merged": unlearn(*given, **rmu, rank=2, accumulate=2),
        "half": unlearn(model.bfloat16(), TOKENIZER, corpus, method="graddiff", **options, master_weights=True),
    }
    model.double()
    found["undo"] = undo(*given, **options, within=0.3, least=2)
    assert all(not parameter.is_meta for made in found.values() for parameter in made.parameters())
    weights = {
        name: {key: tensor.double() for key, tensor in made.state_dict().items()} for name, made in found.items()
    }
    for name, rank in (("attack", None), ("attack on adapters", 2)):
        rows = attack(*given, **options, rank=rank, learning_rates=[1e-2, 1e-3], measured=[0, 2])
        weights[name] = {"losses": torch.tensor(rows.to_numpy())}
    return weights
