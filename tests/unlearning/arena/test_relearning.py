"""Knowledge that a small model has learned and unlearned comes back under attack."""

import torch

from routed_rl.lm import Training, train
from routed_rl.unlearning import unlearn
from routed_rl.unlearning.arena.attacking import run_attack
from routed_rl.unlearning.arena.attacks import FineTuning
from tests.lm.tiny_models import tiny_model
from tests.unlearning.arena.small_arena import knowledge, small_benchmark, small_tokenizer, small_victim


def test_fine_tuning_brings_back_what_a_trained_model_has_unlearned():
    benchmark, tokenizer = small_benchmark(), small_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128}
    model = tiny_model("llama", max_position_embeddings=96, **sizes)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 0.3  # the usual size of new weights
    trained = small_victim(model=model, batch_size=8)
    train(model, trained.batches([*benchmark.forget, *benchmark.retain], "learn"), Training(120, 1e-2, warmup=10))
    model.eval()
    measure = knowledge(trained)
    settings = {"method": "graddiff", "steps": 20, "learning_rate": 2e-3, "batch_size": 8, "progress": False}
    unlearned = unlearn(model, tokenizer, benchmark.forget, benchmark.retain, **settings)
    before = [measure(of, lambda example: example, benchmark)["main"] for of in (model, unlearned)]
    assert before[0] >= 0.9 and before[1] <= 0.2
    victim = small_victim(model=unlearned, batch_size=8)
    found = run_attack(FineTuning((1e-2, 3e-3, 1e-3)), victim, measure, 60)
    assert found["worst"] >= 0.9 and 0 < found["half"] <= 20 and found["cost"] == 60
