"""Small models of four kinds, a batch for them, and their divergence written out."""

import torch

from routed_rl.lm.batches import Batch
from routed_rl.lm.models import build_model
from routed_rl.lm.stories import stories_tokenizer
from tests.lm.tiny_models import tiny_model

VOCABULARY = len(stories_tokenizer())


def make_model(kind, seed=0):
    """In double precision: a preset; Gemma-2 with a cap that matters, and tied embeddings; one whose head has a bias;
    one that scales its logits after the head, which cannot be divided into body and head."""
    if kind == "tiny":
        return build_model("tiny", stories_tokenizer(), seed).double()
    return tiny_model(kind, seed, **({"final_logit_softcapping": 1.5} if kind == "gemma2" else {})).double()


MODELS = {(kind, seed): make_model(kind, seed) for kind in ("tiny", "gemma2", "phi", "cohere") for seed in (0, 1)}
DIVIDED = ("tiny", "gemma2", "phi")
"""Models that can be divided into body and head."""


def make_batch(scored=None, rows=2, length=9):
    tokens = torch.randint(0, 96, (rows, length), generator=torch.Generator().manual_seed(0))
    scored = torch.ones(rows, length - 1, dtype=torch.bool) if scored is None else scored
    return Batch(tokens, torch.full_like(tokens, -1), scored)


def gradients(model, loss):
    """The loss and every parameter's gradient; none is left behind."""
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return {"loss": loss.detach(), **found}


def written_out(student, teacher, batch):
    of_teacher = teacher(input_ids=batch.tokens).logits[:, :-1].detach()
    of_student = student(input_ids=batch.tokens).logits[:, :-1]
    gap = of_teacher.log_softmax(-1) - of_student.log_softmax(-1)
    return (of_teacher.softmax(-1) * gap).sum(-1)[batch.scored].sum()


def assert_same(found, expected, tolerance=1e-6):
    """Of what is largest; the models themselves compute parts in single precision, whatever their weights are."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        most = tolerance * max(1.0, value.abs().max().item())
        torch.testing.assert_close(found[name], value, rtol=0, atol=most, msg=lambda text, name=name: name + text)
