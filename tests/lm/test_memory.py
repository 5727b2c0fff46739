"""Replay of labelled completions in routed GRPO."""

import numpy as np
import pytest
import torch

pytest.importorskip("trl")

from routed_rl.lm.adapters import FORGET, KEEP, forget_scaled
from routed_rl.lm.memory import CAPACITY, LabelledMemory
from routed_rl.routing import RouteTable

from .test_grpo import TOKENIZER, by_content, make, make_adapters, state


def batch(rows):
    """Prompts padded on the left, completions on the right, as TRL has them."""
    widest = [max(len(row[part]) for row in rows) for part in (0, 1)]
    found = {}
    for part, name in enumerate(("prompt", "completion")):
        left = part == 0
        padded = [[0] * (widest[part] - len(r[part])) * left + r[part] for r in rows]
        padded = [row + [0] * (widest[part] - len(row)) for row in padded]
        on = [[1] * len(r[part]) for r in rows]
        on = [[0] * (widest[part] - len(row)) * left + row for row in on]
        on = [row + [0] * (widest[part] - len(row)) for row in on]
        found |= {f"{name}_ids": torch.tensor(padded), f"{name}_mask": torch.tensor(on)}
    return found


ROWS = [([5, 6, 7], [1]), ([8], [2, 3]), ([9, 9], [4, 4, 4]), ([5], [6])]


def test_paid_completions_are_kept_by_label_and_drawn_whole():
    memory = LabelledMemory(("hack", "fine"))
    memory.add(batch(ROWS), ["hack", "fine", "unlabelled", "fine"], [1.0, 0.5, 1.0, 0.0])
    assert {label: list(kept) for label, kept in memory.kept.items()} == {
        "hack": [([5, 6, 7], [1], 1.0)],
        "fine": [([8], [2, 3], 0.5)],
    }
    memory.add(batch(ROWS[2:]), ["fine", "fine"], [2.0, float("nan")])
    drawn = memory.draw("fine", 40, np.random.default_rng(0), pad=99)
    assert drawn["input_ids"].shape == (40, 5) and drawn["scored"].shape == (40, 3)
    seen = set()
    for ids, mask, scored, paid in zip(*drawn.values(), strict=True):
        said = ids[-3:][scored.bool()].tolist()
        whole = ids[mask.bool()].tolist()
        assert (ids[~mask.bool()] == 99).all() and whole[-len(said) :] == said
        seen.add((tuple(whole), tuple(said), float(paid)))
    assert seen == {((8, 2, 3), (2, 3), 0.5), ((9, 9, 4, 4, 4), (4, 4, 4), 2.0)}
    again = memory.draw("fine", 40, np.random.default_rng(0), pad=99)
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert LabelledMemory(("hack",)).draw("hack", 3, np.random.default_rng(0), 0) is None


def test_images_and_tools_cannot_be_learned_again():
    for name, said in {"pixel_values": "images", "tool_mask": "answers of tools"}.items():
        seen = {**batch(ROWS), name: torch.zeros(4, 3)}
        with pytest.raises(ValueError, match=f"replay works on text alone, and completions have {said}: pass replay=0"):
            LabelledMemory(("fine",)).add(seen, ["fine"] * 4, [1.0] * 4)
        LabelledMemory(()).add(seen, ["fine"] * 4, [1.0] * 4)


def test_the_latest_are_kept_and_come_back(tmp_path):
    memory = LabelledMemory(("fine",))
    for number in range(CAPACITY + 5):
        memory.add(batch([([number], [1])]), ["fine"], [1.0])
    assert [row[0][0] for row in memory.kept["fine"]] == [*range(5, CAPACITY + 5)]
    memory.save(tmp_path)
    loaded = LabelledMemory(("fine",))
    for _ in range(2):
        loaded.load(tmp_path)
        assert loaded.kept == memory.kept
    with pytest.raises(ValueError, match="was saved with a replay of 'fine', and now there is one of 'hack'"):
        LabelledMemory(("hack",)).load(tmp_path)
    with pytest.raises(ValueError, match="was saved with a replay of nothing"):
        loaded.load(tmp_path / "other")


def test_a_smaller_batch_at_a_time_learns_the_same_again(tmp_path):
    states = []
    for parts in (1, 4):
        options = {"per_device_train_batch_size": 16 // parts, "gradient_accumulation_steps": parts, "max_steps": 4}
        trainer = make(tmp_path, replay=6, options=options)
        trainer.train()
        assert all(trainer.memory.kept.values())
        states.append(state(trainer, KEEP) | state(trainer, FORGET))
    for name, expected in states[0].items():
        torch.testing.assert_close(states[1][name], expected, rtol=0, atol=1e-5)


def naive(trainer, drawn, label):
    """The mean over completions of ``- reward * mean log p``, one completion at a time."""
    total = torch.zeros(())
    for ids, mask, scored, paid in zip(*drawn.values(), strict=True):
        whole = ids[mask.bool()][None]
        written = int(scored.sum())
        both = {KEEP: torch.ones(1), FORGET: torch.ones(1)}
        with trainer.router(weights=both), forget_scaled(trainer.adapters, float(label == "hack")):
            log_probs = trainer.model(whole).logits[0, -written - 1 : -1].log_softmax(dim=-1)
        said = whole[0, -written:]
        total = total - paid * log_probs[range(written), said].mean()
    return total / len(drawn["rewards"])


@pytest.mark.parametrize("replay", [1, 5])
def test_each_adapter_learns_its_own_completions_again(tmp_path, monkeypatch, replay):
    trainer = make(tmp_path, adapters=make_adapters(moved=True), replay=replay, options={"max_steps": 2})
    found = []
    loss_of = type(trainer)._replayed_loss

    def compared(self, model):
        loss = loss_of(self, model)
        if not any(self.memory.kept.values()):
            return loss
        names = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(loss, list(names.values()), retain_graph=True, allow_unused=True)
        rng = np.random.default_rng([self.args.seed, self.state.global_step])
        expected = dict.fromkeys(names, 0.0)
        for label, learns in (("hack", FORGET), ("fine", KEEP)):
            if (drawn := self.memory.draw(label, replay, rng, TOKENIZER.pad_token_id)) is None:
                continue
            own = {name: p for name, p in names.items() if f".{learns}." in name}
            for name, part in zip(own, torch.autograd.grad(naive(self, drawn, label), list(own.values())), strict=True):
                expected[name] = part
        for want, got in zip(expected.values(), gradients, strict=True):
            torch.testing.assert_close(got, torch.as_tensor(want).expand_as(got), rtol=1e-4, atol=1e-6)
            found.append(bool(got.any()))
        return loss

    monkeypatch.setattr(type(trainer), "_replayed_loss", compared)
    trainer.train()
    assert any(found)


def test_without_a_label_nothing_is_learned_again(tmp_path):
    states = []
    for replay in (0, 4):
        trainer = make(tmp_path, lambda completions, **_: [None] * len(completions), replay=replay)
        trainer.train()
        states.append(state(trainer, KEEP) | state(trainer, FORGET))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_interrupted_training_goes_on_with_its_memory(tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = make(tmp_path / "whole", options=options, replay=3)
    whole.train()

    def stop_late(completions, trainer_state, **given):
        if trainer_state.global_step == 4:
            raise KeyboardInterrupt
        return by_content(completions, **given)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "broken", stop_late, options=options, replay=3).train()
    continued = make(tmp_path / "broken", options=options, replay=3)
    continued.train(resume_from_checkpoint=True)
    assert continued.memory.kept == whole.memory.kept and all(whole.memory.kept.values())
    for adapter in (KEEP, FORGET):
        for name, parameter in state(whole, adapter).items():
            torch.testing.assert_close(state(continued, adapter)[name], parameter, rtol=0, atol=1e-6)


def test_labels_that_no_completion_can_have_are_refused(tmp_path):
    own = RouteTable({"good": {}, "bad": {}}, (KEEP, FORGET))
    with pytest.raises(ValueError, match="replay_table has the label 'hack'; the labels of the table are 'good'"):
        make(tmp_path, table=own, replay=4)
    make(tmp_path, table=own, replay=4, replay_table=own)
    make(tmp_path, table=own)
    with pytest.raises(ValueError, match=r"replay_table must be a RouteTable, got {'fine'"):
        make(tmp_path, replay=4, replay_table={"fine": {}})


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 2)
    with pytest.raises(ValueError, match="replay=4 needs a single process, and there are 2: pass replay=0"):
        make(tmp_path, replay=4)


@pytest.mark.parametrize("replay", [-1, 0.5, True, "all"])
def test_what_is_no_number_of_completions_is_refused(tmp_path, replay):
    with pytest.raises(ValueError, match="replay must be a number of completions"):
        make(tmp_path, replay=replay)
