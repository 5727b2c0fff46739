"""Our losses and router in ``transformers.Trainer``, compared with our own loop."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from routed_rl.lm.batches import Batch
from routed_rl.lm.era import TABLE, EraObjective, era_weights, expand
from routed_rl.lm.training import Training, make_optimizer, train
from routed_rl.routing import GradientRouter
from tests.lm.cases import ROWS, VOCABULARY, make_batches, make_corpus, make_llama

IGNORED = -100


class RoutedTrainer(Trainer):
    """Trainer with one of our losses. The loss is a sum, and the Trainer knows what to divide it by."""

    def __init__(self, *args, objective, **kwargs):
        super().__init__(*args, **kwargs)
        self.objective = objective

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        scored = inputs["labels"][:, 1:] != IGNORED
        loss = self.objective(
            model, Batch(inputs["input_ids"], inputs["route"], scored, inputs["examples"], packed=True)
        )
        # The Trainer, too, averages gradients over processes.
        return loss * self.accelerator.num_processes / num_items_in_batch


def rows(batches, steps):
    """Our batches in the Trainer's form: one example a row, where targets that are not scored have the label -100."""
    for step in range(steps):
        batch = batches.batch(step)
        labels = batch.tokens.clone()
        labels[:, 0] = IGNORED
        labels[:, 1:][~batch.scored] = IGNORED
        for i in range(len(batch)):
            yield {
                "input_ids": batch.tokens[i],
                "labels": labels[i],
                "route": batch.labels[i],
                "examples": batch.examples[i],
            }


@pytest.mark.parametrize("mode", ["activation", "parameter"])
def test_the_trainer_learns_what_our_loop_learns(tmp_path, mode):
    batches = make_batches(make_corpus(tmp_path / "corpus"))
    settings = Training(steps=6, learning_rate=1e-2, warmup=3, accumulate=2)

    def routed():
        model = make_llama()
        expansion = expand(model, [0, 1], 8, seed=1)
        router = GradientRouter(model, expansion.sites(mode), TABLE, mode)
        weights = era_weights(torch.linspace(0, 1, VOCABULARY), alpha=-0.5)
        return model, router, EraObjective(router, weights, expansion, l1=0.01)

    ours, router, objective = routed()
    with router:
        train(ours, batches, settings, objective)

    model, router, objective = routed()
    optimizer = make_optimizer(model, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: settings.rate(step) / settings.learning_rate)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=settings.steps,
        per_device_train_batch_size=ROWS // settings.accumulate,
        gradient_accumulation_steps=settings.accumulate,
        max_grad_norm=settings.clip,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = RoutedTrainer(
        model,
        arguments,
        objective=objective,
        train_dataset=list(rows(batches, settings.steps)),
        optimizers=(optimizer, schedule),
    )
    with router:
        trainer.train()
    unrouted = make_llama()
    expand(unrouted, [0, 1], 8, seed=1)
    train(unrouted, batches, settings)
    for (name, parameter), expected in zip(model.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-8, msg=lambda text, name=name: name + text)
    name = "model.layers.0.mlp.up_proj.weight"
    assert (ours.get_parameter(name) - unrouted.get_parameter(name)).abs().max() > 1e-3
