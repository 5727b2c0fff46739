"""The cost of training: the formula against a count of the products that are computed."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config

from routed_rl.lm import throughput
from routed_rl.lm.models import build_model
from routed_rl.lm.throughput import matmul_rate, training_flops
from tests.lm.cases import TOKENIZER, VOCABULARY, make_llama

LENGTH, ROWS = 24, 3


def make_gpt2():
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=LENGTH)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


MODELS = {
    "llama": lambda: make_llama(attn_implementation="eager"),
    "wide heads": lambda: make_llama(attn_implementation="eager", head_dim=8),
    "preset, tied": lambda: build_model("tiny", TOKENIZER, 0),
    "gpt2": make_gpt2,
}


@pytest.mark.parametrize("name", MODELS)
def test_the_formula_counts_what_is_done(name):
    model = MODELS[name]()
    tokens = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, use_cache=False).logits.sum().backward()
    assert training_flops(model, LENGTH) * tokens.numel() == counter.get_total_flops()


def test_frozen_weights_cost_no_gradient_of_their_own():
    model = make_llama()
    whole = training_flops(model, LENGTH)
    weight = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    assert whole - training_flops(model, LENGTH) == 2 * weight.numel()


def test_the_rate_is_that_of_the_fastest_product(monkeypatch):
    # Two clock readings for each product, and one to ask whether time is left.
    lasting = itertools.cycle([0.01, 0.05, 0.01, 0.02, 0.01, 0.04])
    clock = itertools.accumulate(lasting)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    assert matmul_rate(torch.device("cpu"), torch.float32) == pytest.approx(2 * 512**3 / 0.01)
