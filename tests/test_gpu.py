"""What a CUDA device computes, beside the processor."""

import copy

import numpy as np
import pytest
import torch

from routed_rl.envs import DiamondGhostTensorVecEnv
from routed_rl.lm import Batches, Corpus, Training, WholeDocuments, evaluate, stories_tokenizer, train
from routed_rl.rl import RoutedPPO, RoutedREINFORCE
from tests.lm.tiny_models import tiny_model
from tests.rl.test_device import learner, same

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def test_environments_are_the_same_to_the_bit():
    here, there = (DiamondGhostTensorVecEnv(64, device, oversight=0.3, max_steps=7) for device in ("cpu", "cuda"))
    assert torch.equal(here.reset(), there.reset().cpu())
    actions = torch.randint(4, (40, 64), generator=torch.Generator().manual_seed(0))
    for chosen in actions:
        ours, theirs = here.step(chosen), there.step(chosen.cuda())
        for a, b in zip(ours[:3], theirs[:3], strict=True):
            assert torch.equal(a, b.cpu())


@pytest.mark.parametrize("kind", [RoutedPPO, RoutedREINFORCE])
def test_a_learner_is_repeatable_and_goes_on_where_it_was_saved(kind, tmp_path):
    first, second = (
        learner(DiamondGhostTensorVecEnv(64, "cuda", oversight=0.3), kind, device="cuda") for _ in range(2)
    )
    for model in (first, second):
        model.learn(3 * 512)
    assert all(parameter.is_cuda and parameter.isfinite().all() for parameter in first.policy.parameters())
    assert same(first, second)
    first.save(tmp_path / "model")
    env = DiamondGhostTensorVecEnv(64, "cuda", oversight=0.3)
    again = kind.load(tmp_path / "model", env=env, device="cuda", force_reset=False)
    for model in (first, again):
        model.learn(2 * 512, reset_num_timesteps=False)
    assert same(first, again)


def test_a_language_model_learns_as_on_the_processor():
    """Five steps in float32 without TF32: the losses agree to 1e-4 nats."""
    tokenizer, rng = stories_tokenizer(), np.random.default_rng(0)
    starts = np.arange(0, 32 * 200 + 1, 32)
    tokens, forget = rng.integers(2, len(tokenizer), starts[-1]), np.zeros(starts[-1], dtype=bool)
    corpus = Corpus(tokens, forget, starts, np.zeros(200, dtype=bool), {})
    batches = Batches(corpus, np.arange(200), 33, 8, 0)
    here = tiny_model("llama")
    there = copy.deepcopy(here).cuda()
    for model in (here, there):
        train(model, batches, Training(steps=5, warmup=0))
    documents = WholeDocuments(corpus, np.arange(200))
    losses = [evaluate(model, documents).mean() for model in (here, there)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
