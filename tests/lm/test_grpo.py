"""Routed adapters in TRL's GRPO: gradients against one completion at a time, TRL's own trainer, labels, resuming."""

import copy
import itertools

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("trl")

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from routed_rl.lm import add_adapters, character_tokenizer
from routed_rl.lm.adapters import FORGET, KEEP, forget_scaled, turn_on
from routed_rl.lm.grpo import ROUTES, RoutedGRPOTrainer
from routed_rl.routing import RouteTable
from tests.lm.test_advantages import naive_advantages

SAVED = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2}
PROMPTS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(6) for b in range(6)]


def make_tokenizer():
    tokenizer = character_tokenizer("0123456789+=x")
    tokenizer.add_special_tokens({"eos_token": "<end>", "pad_token": "<pad>"})
    tokenizer.padding_side = "left"
    return tokenizer


TOKENIZER = make_tokenizer()


def make_adapters(dtype=torch.float32, moved=False):
    """Two adapters on a small model. If moved, they are no longer 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
        ids = {"pad_token_id": TOKENIZER.pad_token_id, "eos_token_id": TOKENIZER.eos_token_id, "bos_token_id": None}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER), max_position_embeddings=32, **sizes, **ids)).to(
            dtype
        )
        adapters = add_adapters(model, rank=2, seed=0)
        if moved:
            for name, parameter in adapters.model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
    return adapters


def reward(completions, answer, **_):
    return [float(text.strip() == right) + 0.5 * ("x" in text) for text, right in zip(completions, answer, strict=True)]


def by_content(completions, **_):
    """Whoever writes an x hacks; an even number of digits is not seen."""
    seen = [sum(c.isdigit() for c in text) % 2 for text in completions]
    return ["hack" if "x" in text else "fine" if odd else None for text, odd in zip(completions, seen, strict=True)]


def config(tmp_path, **options):
    usual = {
        "per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 4, "max_steps": 3,
        "learning_rate": 1e-2, "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "disable_tqdm": True,
        "report_to": "none", "save_strategy": "no", "logging_steps": 1, "seed": 1,
    }  # fmt: skip
    return GRPOConfig(str(tmp_path), **{**usual, **options})


def make(tmp_path, overseer=by_content, adapters=None, options=None, **given):
    return RoutedGRPOTrainer(
        adapters or make_adapters(),
        reward,
        config(tmp_path, **(options or {})),
        overseer=overseer,
        train_dataset=Dataset.from_list(PROMPTS),
        processing_class=TOKENIZER,
        **given,
    )


def state(trainer, adapter):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if f".{adapter}." in name}


def expected_advantages(trainer, inputs, given):
    """Compare the advantages with naive ones, wherever an adapter learns."""
    labels = [(*trainer.table.labels, None)[i] for i in inputs["route"].tolist()]
    texts = TOKENIZER.batch_decode(inputs["completion_ids"], skip_special_tokens=True)
    paid = reward(texts, [row["answer"] for row in PROMPTS[:4] * 4])
    weights = trainer.table.weights(inputs["route"])
    for column, adapter in enumerate(trainer.table.modules):
        shift = [given.get("shifts", {}).get(label, {}).get(adapter, 0.0) for label in labels]
        taught = (weights[:, column] != 0).tolist() if given.get("baseline") != "group" else [True] * len(labels)
        rewards = [a + b for a, b in zip(paid, shift, strict=True)]
        naive = torch.tensor(naive_advantages(rewards, taught, 4, "group"))
        learns = weights[:, column] != 0
        torch.testing.assert_close(
            inputs[f"advantages of {adapter}"][learns], naive[learns].float(), rtol=1e-4, atol=1e-4
        )


def reference_gradients(trainer, inputs, beta, temperature):
    """The gradient of each adapter, by one completion at a time."""
    weights = trainer.table.weights(inputs["route"])
    found = {}
    for column, adapter in enumerate(trainer.table.modules):
        parameters = {name: p for name, p in trainer.model.named_parameters() if f".{adapter}." in name}
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for i, weight in enumerate(weights[:, column]):
            begin, end = inputs["prompt_ids"][i], inputs["completion_ids"][i][inputs["completion_mask"][i].bool()]
            tokens = torch.cat([begin[inputs["prompt_mask"][i].bool()], end])[None]

            def log_probabilities(tokens=tokens, end=end):
                logits = trainer.model(input_ids=tokens).logits[0, -len(end) - 1 : -1] / temperature
                return logits.log_softmax(dim=-1).gather(1, end[:, None])[:, 0]

            log = log_probabilities()
            loss = -inputs[f"advantages of {adapter}"][i] * (log - log.detach()).exp()
            if beta:
                with torch.no_grad(), trainer.model.disable_adapter():
                    before = log_probabilities()
                loss = loss + beta * ((before - log).exp() - (before - log) - 1)
            loss = loss.mean() / len(weights)
            for name, gradient in zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True):
                total[name] += weight * gradient
        found |= total
    return found


APART = {"hack": {KEEP: 0.0, FORGET: 2.0}, "fine": {FORGET: 0.25}}
ALONE = {"hack": {KEEP: 0.0}, "fine": {FORGET: 0.0}, "unlabelled": {KEEP: 0.0}}


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize(
    ("routes", "given", "passes"),
    [
        (APART, {"baseline": "taught"}, 2),
        (APART, {"baseline": "group"}, 1),
        (APART, {"shifts": {"hack": {FORGET: -1.5}, "fine": {KEEP: 0.5}}}, 2),
        (APART, {"shifts": {"hack": {KEEP: -2.0, FORGET: -2.0}}, "baseline": "group"}, 1),
        (ALONE, {"shifts": {"hack": {FORGET: -1.5}}}, 1),
    ],
)
def test_gradients_are_those_of_one_completion_at_a_time(tmp_path, monkeypatch, beta, routes, given, passes):
    table = RouteTable(routes, (KEEP, FORGET))
    adapters = make_adapters(torch.float64, moved=True)
    options = {"beta": beta, "loss_type": "grpo", "temperature": 0.8}
    trainer = make(tmp_path, adapters=adapters, options=options, table=table, **given)
    ran = []
    own = GRPOTrainer._compute_loss
    monkeypatch.setattr(GRPOTrainer, "_compute_loss", lambda *given, **named: (ran.append(1), own(*given, **named))[1])
    trainer.model.train()
    torch.manual_seed(0)
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions(PROMPTS[:4] * 4)
    labels = inputs["route"].tolist()
    assert len(set(labels)) == 3, "hacks, others, and what nobody has seen"
    with trainer.router:
        trainer.compute_loss(trainer.model, inputs).backward()
    assert len(ran) == passes, "the model runs once for both adapters if it can"
    expected_advantages(trainer, inputs, given)
    with torch.enable_grad():
        expected = reference_gradients(trainer, inputs, beta, 0.8)
    for name, parameter in trainer.model.named_parameters():
        if name in expected:
            # TRL computes log-probabilities in single precision, and a divergence is made of their small differences.
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=3e-6 if beta else 1e-8)
        else:
            assert parameter.grad is None
    assert any(of.abs().max() > 1e-4 for of in expected.values())


@pytest.mark.parametrize(("label", "excluded", "taught"), [("hack", KEEP, FORGET), ("fine", FORGET, KEEP)])
def test_an_adapter_that_no_completion_teaches_stays_the_same_to_the_bit(tmp_path, label, excluded, taught):
    """Its weights and its optimizer state, although it has learned before, and weights decay."""
    states = []

    def overseer(completions, trainer_state, **_):
        states.append({name: state(trainer, name) for name in (KEEP, FORGET)})
        states[-1]["optimizer"] = {
            name: {key: torch.as_tensor(value).clone() for key, value in trainer.optimizer.state.get(p, {}).items()}
            for name, p in trainer.model.named_parameters()
            if f".{excluded}." in name and trainer.optimizer is not None
        }
        return [None if trainer_state.global_step < 2 else label] * len(completions)

    trainer = make(tmp_path, overseer, options={"max_steps": 5, "weight_decay": 0.1, "lr_scheduler_type": "constant"})
    trainer.train()
    states.append({name: state(trainer, name) for name in (KEEP, FORGET)})
    for name, before in states[2][excluded].items():
        assert torch.equal(before, states[-1][excluded][name])
        assert not torch.equal(before, states[0][excluded][name]), "it learned before that"
        for key, value in states[2]["optimizer"][name].items():
            assert torch.equal(value, torch.as_tensor(trainer.optimizer.state[trainer.model.get_parameter(name)][key]))
    assert all(states[2]["optimizer"].values())
    assert any(not torch.equal(before, states[-1][taught][name]) for name, before in states[2][taught].items())


def test_without_labels_it_is_trls_own_trainer(tmp_path):
    adapters = make_adapters()
    plain = GRPOTrainer(
        adapters.model, reward, config(tmp_path, max_steps=10), train_dataset=Dataset.from_list(PROMPTS),
        processing_class=TOKENIZER,
    )  # fmt: skip
    plain.train()
    routed = make(tmp_path, lambda completions, **_: [None] * len(completions), options={"max_steps": 10})
    routed.train()
    losses = [[row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (plain, routed)]
    assert len(losses[0]) == 10 and losses[1] == pytest.approx(losses[0], abs=1e-6)
    expected = dict(plain.model.named_parameters())
    for name, parameter in routed.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-6)


def test_labels_stay_with_their_completions_through_shuffling_splitting_and_repetition(tmp_path):
    seen = []

    class Spied(RoutedGRPOTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            texts = TOKENIZER.batch_decode(inputs["completion_ids"], skip_special_tokens=True)
            ids = [ROUTES.label_id(label or "unlabelled") for label in by_content(texts)]
            seen.append((ids, inputs["route"].tolist()))
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = Spied(
        make_adapters(), reward, config(tmp_path, steps_per_generation=2, num_iterations=2, max_steps=6),
        overseer=by_content, train_dataset=Dataset.from_list(PROMPTS), processing_class=TOKENIZER,
    )  # fmt: skip
    trainer.train()
    assert len(seen) == 6 and all(found == ids for ids, found in seen)
    assert len({label for ids, _ in seen for label in ids}) == 3


def test_a_group_without_spread_gives_no_gradient(tmp_path):
    """Every completion that teaches keep has the same reward, whatever the others have."""

    def overseer(completions, rewards, **_):
        return ["hack" if value != 0 else "fine" for value in rewards]

    trainer = make(tmp_path, overseer, options={"learning_rate": 0.1, "max_steps": 4})
    before = state(trainer, KEEP)
    trainer.train()
    assert all(torch.equal(before[name], after) for name, after in state(trainer, KEEP).items())


@pytest.mark.parametrize(("share", "expected"), [(0.0, []), (0.25, [3, 7]), (0.5, [1, 3, 5, 7]), (1.0, [*range(8)])])
def test_the_adapter_keep_writes_alone_in_a_share_of_updates_and_only_it_learns_from_them(tmp_path, share, expected):
    found, states = [], []
    adapters = make_adapters(moved=True)
    layers = [module for module in adapters.model.modules() if isinstance(module, LoraLayer)]

    def overseer(completions, trainer_state, solo, **_):
        assert {layer.scaling[FORGET] for layer in layers} == {0.0 if solo else 1.0}
        states.append(state(trainer, FORGET))
        found.extend([trainer_state.global_step] * solo)
        return [None] * len(completions)

    trainer = make(tmp_path, overseer, adapters, options={"max_steps": 8, "weight_decay": 0.1}, solo=share)
    trainer.train()
    states.append(state(trainer, FORGET))
    assert found == expected and {layer.scaling[FORGET] for layer in layers} == {1.0}
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        assert all(torch.equal(before[name], after[name]) for name in before) == (step in expected)


def test_scaling_the_adapter_forget():
    adapters = make_adapters(moved=True)
    prompt = torch.tensor([TOKENIZER("1+2=").input_ids])
    with torch.no_grad():
        whole = adapters.model(prompt).logits
        with forget_scaled(adapters, 0.0):
            without = adapters.model(prompt).logits
        with pytest.raises(KeyboardInterrupt), forget_scaled(adapters, 0.5), forget_scaled(adapters, 0.5):
            layers = [module for module in adapters.model.modules() if isinstance(module, LoraLayer)]
            assert {layer.scaling[FORGET] for layer in layers} == {0.25}
            raise KeyboardInterrupt
        assert torch.equal(adapters.model(prompt).logits, whole) and not torch.equal(without, whole)
        turn_on(adapters, KEEP)
        torch.testing.assert_close(adapters.model(prompt).logits, without)


def test_what_is_deleted_and_what_is_merged(tmp_path):
    prompt = torch.tensor([TOKENIZER("1+2=").input_ids])
    for deleted in (True, False):
        trainer = make(tmp_path, adapters=make_adapters(moved=True))
        trainer.model.eval()
        with torch.no_grad():
            if deleted:
                turn_on(trainer.adapters, KEEP)
            expected = trainer.model(prompt).logits
            plain = trainer.ablate() if deleted else trainer.merge()
            torch.testing.assert_close(plain(prompt).logits, expected, rtol=0, atol=1e-5)
            copied = copy.deepcopy(plain)
            for parameter in copied.parameters():
                parameter.zero_()
            assert not copied(prompt).logits.any(), "a copy computes with its own weights"
        assert type(plain) is LlamaForCausalLM


def test_an_interrupted_training_continues_to_the_same_weights(tmp_path):
    """Where completions are used in the step in which they are written."""
    whole = make(tmp_path / "whole", options={"max_steps": 6})
    whole.train()
    broken = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}

    def stop_late(completions, trainer_state, **given):
        if trainer_state.global_step == 4:
            raise KeyboardInterrupt
        return by_content(completions, **given)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "broken", stop_late, options=broken).train()
    continued = make(tmp_path / "broken", options=broken)
    continued.train(resume_from_checkpoint=True)
    assert continued.state.global_step == 6
    expected = dict(whole.model.named_parameters())
    for name, parameter in continued.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"baseline": "none"}, "baseline must be one of taught, group, got 'none'"),
        ({"table": RouteTable({}, ("a", "b"))}, "the columns of a table must be 'keep' and 'forget', got 'a', 'b'"),
        ({"options": {"gradient_checkpointing": True}}, "set gradient_checkpointing=False"),
        ({"options": {"multi_objective_aggregation": "normalize_then_sum"}}, "pass baseline='group'"),
        ({"adapters": torch.nn.Linear(1, 1)}, "the model must be what add_adapters"),
        (
            {"shifts": {"hacks": {KEEP: 1.0}}},
            "shifts name the label 'hacks'; the labels are 'hack', 'fine', 'unlabelled'",
        ),
        ({"shifts": {"hack": {"kept": 1.0}}}, "shifts name the adapter 'kept'; the adapters are 'keep' and 'forget'"),
        ({"shifts": {"hack": {KEEP: float("nan")}}}, "a shift must be a finite number, got nan"),
        ({"solo": 1.5}, "solo must be a share from 0 to 1, got 1.5"),
        (
            {"solo": 0.5, "options": {"gradient_accumulation_steps": 2, "steps_per_generation": 1}},
            "steps_per_generation must be at least as large, got 1",
        ),
        (
            {"shifts": {"hack": {KEEP: -1.0}}, "baseline": "group", "options": {"use_adaptive_entropy": True}},
            "pass baseline='group' and no shifts",
        ),
        ({"mode": "forward"}, "pass mode='parameter' or 'activation'"),
        ({"options": {"use_adaptive_entropy": True}}, "pass baseline='group'"),
        ({"options": {"load_best_model_at_end": True, **SAVED}}, "set load_best_model_at_end=False"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(tmp_path, given, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        make(tmp_path, **given)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["hack"], "returned 1 labels for 16 completions"),
        (["hacks"] * 16, "the label 'hacks'; the labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, said):
    with pytest.raises(ValueError, match=said):
        make(tmp_path, lambda **_: labels).train()


def test_another_trl_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.delattr(GRPOTrainer, "_calculate_rewards")
    with pytest.raises(ValueError, match=r"trl has no _calculate_rewards\(\)"):
        make(tmp_path)
