"""OutcomeModel: learns from overseen episodes alone, abstains where it is not sure, and is calibrated."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.logger import Logger

from routed_rl.rl import FinalSteps, OutcomeModel, Overseer, RoutedActorCriticPolicy
from routed_rl.rl.outcome_model import CAPACITY, FOLDS, MIN_EPISODES, TEMPERATURES

from .worlds import VALUES, small_model

BOX = spaces.Box(-9, 9, (2,), np.float32)
ACTIONS = {"discrete": spaces.Discrete(3), "box": spaces.Box(-1, 1, (2,), np.float32)}


def new_model(action_space=ACTIONS["discrete"], **options):
    torch.manual_seed(0)
    policy = RoutedActorCriticPolicy(BOX, action_space, lambda _: 1e-3, hidden=(4,), value_hidden=(4,))
    return OutcomeModel(policy, 2, **options)


def episodes(n, seed, wrong=0.0, kind="discrete"):
    """Return endings with their labels. The sign of the first number is the outcome, but for wrong labels."""
    rng = np.random.default_rng(seed)
    final = torch.from_numpy(rng.normal(size=(n, 2)).astype(np.float32))
    actions = torch.from_numpy(rng.integers(0, 3, n)) if kind == "discrete" else torch.zeros(n, 2)
    labels = (final[:, 0] > 0).long()
    flipped = torch.from_numpy(rng.random(n) < wrong)
    return FinalSteps(actions, final), torch.where(flipped, 1 - labels, labels)


def fitted(model, endings, labels, steps=200):
    model.add(endings, labels)
    model.fit(steps, torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("kind", ACTIONS)
def test_it_learns_which_outcome_an_ending_shows(kind):
    model = fitted(new_model(ACTIONS[kind]), *episodes(400, 0, kind=kind))
    endings, labels = episodes(500, 1, kind=kind)
    predicted = model.predict(endings)
    sure = predicted >= 0
    assert sure.float().mean() > 0.8
    assert (predicted == labels)[sure].float().mean() > 0.97


def test_the_action_counts_where_the_observation_says_nothing():
    endings, _ = episodes(300, 0)
    blind = FinalSteps(endings.actions, torch.zeros_like(endings.final_obs))
    model = fitted(new_model(), blind, (endings.actions == 2).long())
    chosen = FinalSteps(torch.tensor([0, 1, 2]), torch.zeros(3, 2))
    assert model.predict(chosen).tolist() == [0, 0, 1]


def test_it_abstains_until_two_outcomes_were_overseen_a_few_times():
    endings, labels = episodes(200, 0)
    model = fitted(new_model(), endings.select(labels == 0), labels[labels == 0])
    assert (model.predict(endings) == -1).all()
    model.add(endings.select(labels == 1), labels[labels == 1])
    model.fit(200, torch.Generator().manual_seed(0))
    assert (model.predict(endings) >= 0).any()
    assert len(model.predict(endings.select(labels > 1))) == 0


@pytest.mark.parametrize("kind", ACTIONS)
@pytest.mark.parametrize(
    ("labels", "outcome"),
    [([1, 1, 1], -1), ([1, 1, 1, 1], 1), ([1, 1, 1, 1, 0], -1), ([1] * 20 + [0], 1), ([0] * 20 + [1], 0)],
)
def test_four_equal_endings_with_equal_labels_are_enough(kind, labels, outcome):
    """Also while only one outcome was overseen. (m + 1/2) / (n + 1) must be at least 0.9."""
    model = new_model(ACTIONS[kind])
    endings, _ = episodes(2, 0, kind=kind)
    other = endings.select(torch.tensor([0]))._replace(actions=endings.actions[:1] + 1)
    model.add(endings.select(torch.zeros(len(labels), dtype=torch.int64)), torch.tensor(labels))
    if min(labels) == max(labels):
        assert not model.ready
        assert model.predict(endings).tolist() == [outcome, -1]
        assert model.predict(other).tolist() == [-1], "the action is a part of the ending"
    assert model._sure(model._matched(endings)).tolist() == [outcome, -1]


def test_probabilities_of_labels_with_a_third_wrong_are_near_two_thirds():
    """Without the temperature they are near 1, because two layers learn the wrong labels by heart."""
    model = fitted(new_model(), *episodes(300, 0, wrong=1 / 3), steps=700)
    endings, labels = episodes(2000, 1, wrong=1 / 3)
    probability, outcome = model.probabilities(endings).max(dim=1)
    right = float((outcome == labels).float().mean())
    assert model.temperature > 1
    assert float(probability.mean()) == pytest.approx(right, abs=0.12)
    assert (model.predict(endings) >= 0).float().mean() < 0.2


def test_the_newest_episodes_of_each_outcome_are_kept_and_a_fifth_is_for_the_temperature():
    model, drawn = new_model(batch_size=64), []
    n = CAPACITY + 7
    final = torch.arange(2 * n, dtype=torch.float32).view(n, 2)
    model.add(FinalSteps(torch.zeros(n, dtype=torch.int64), final), torch.ones(n, dtype=torch.int64))
    assert model.count.tolist() == [0, CAPACITY]
    assert torch.equal(model.final_obs[1].sort(dim=0).values, final[7:])
    assert not model.final_obs[0].any()
    stored = model._stored
    model._stored = lambda label, slot: drawn.append(slot) or stored(label, slot)
    model.fit(200, torch.Generator().manual_seed(0))
    slots = torch.cat(drawn[:-1]).unique()
    members = len(model.heads)
    for member, held_out in enumerate(drawn[-members:]):
        slots = torch.cat(drawn[member:-members:members]).unique()
        assert not torch.isin(slots, held_out).any(), "a member is calibrated on episodes that it learns from"
        assert len(slots) > 0.99 * (CAPACITY - len(held_out))
        assert torch.equal(held_out, torch.arange(FOLDS - 1 - member, CAPACITY, FOLDS))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 7))
def test_a_member_draws_every_stored_episode_but_those_it_holds_out(stored, members):
    model, drawn = new_model(members=members, batch_size=200), []
    model.add(FinalSteps(torch.zeros(stored, dtype=torch.int64), torch.zeros(stored, 2)), torch.zeros(stored).long())
    inner = model._stored
    model._stored = lambda label, slot: drawn.append(slot) or inner(label, slot)
    model._step(torch.Generator().manual_seed(0))
    assert len(drawn) == members
    for member, slots in enumerate(drawn):
        apart = FOLDS - 1 - member % (FOLDS - 1)
        assert set(slots.tolist()) <= {slot for slot in range(stored) if slot % FOLDS != apart}


@pytest.mark.parametrize("labelled", [MIN_EPISODES, 8, 20])
def test_labels_that_nothing_shows_are_seldom_predicted(labelled):
    """With few labels, a network of this size learns any labels by heart."""
    space = spaces.Box(0, 1, (100,), np.float32)
    sure = []
    for seed in range(4):
        torch.manual_seed(seed)
        policy = RoutedActorCriticPolicy(space, ACTIONS["discrete"], lambda _: 1e-3, hidden=(64, 64), value_hidden=(4,))
        model = OutcomeModel(policy, 2)
        endings = FinalSteps(torch.randint(0, 3, (300,)), (torch.rand(300, 100) < 0.1).float())
        known = torch.arange(300) < 2 * labelled
        fitted(model, endings.select(known), torch.arange(2 * labelled) % 2, steps=40)
        sure.append((model.predict(endings.select(~known)) >= 0).float().mean())
    assert torch.stack(sure).mean() < 0.08


@pytest.mark.parametrize("unlabelled", ["all", "predicted"])
@pytest.mark.parametrize("method", ["routing", "reward-model", "filtering"])
def test_what_predicts(method, unlabelled):
    model = small_model(overseer=Overseer(VALUES, method, unlabelled=unlabelled))
    predicts = method == "reward-model" or (method == "routing" and unlabelled == "predicted")
    assert (model.outcome_model is not None) == predicts


@pytest.mark.parametrize("method", ["routing", "reward-model"])
def test_a_predicted_label_does_what_the_overseers_label_does(method):
    """With a model that names the true outcome, everything is as if every episode had been overseen."""
    models = [small_model(overseer=Overseer(VALUES, method, unlabelled="predicted")) for _ in range(2)]
    told, unseen = models[0], []
    store = told._store_labels

    def store_and_tell(ends):
        outcome, overseen = ends.outcome[ends.ended], ends.overseen[ends.ended]
        unseen[:] = [outcome[(outcome >= 0) & ~overseen]]
        store(ends)

    told._store_labels, told.outcome_model.predict = store_and_tell, lambda endings: unseen[0]
    models[1].overseer.label = lambda outcome, overseen, rng, length: np.where(outcome >= 0, outcome, 3)
    for model in models:
        model.learn(4 * 128)
    weights = [model.policy.state_dict() for model in models]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize(("sure", "label"), [(9, 4), (8, 2)])
def test_what_is_not_explained_is_novel_where_nine_in_ten_are(sure, label):
    """Among ten unseen episodes; labelled ones and those without an outcome keep their label."""
    model = small_model(overseer=Overseer(VALUES, unlabelled="predicted"), solo=1.0)
    model.set_logger(Logger(None, []))
    ended = torch.zeros(8, 16, dtype=torch.bool)
    ended[0, :12] = True
    labels = torch.tensor([2] * 10 + [1, 3])
    ends = SimpleNamespace(ended=ended, outcome=torch.zeros(8, 16, dtype=torch.int64), final_obs=lambda: obs)
    obs = np.stack([model.observation_space.sample() for _ in range(12)])
    model.outcome_model.predict = lambda endings: torch.tensor([0] * sure + [-1] * (10 - sure))
    found = model._predicted(model.outcome_model, labels, ends)
    assert found.tolist() == [0] * sure + [label] * (10 - sure) + [1, 3]


def test_an_encoder_with_dropout_predicts_the_same_twice():
    model = new_model()
    for member in range(len(model.encoders)):
        model.encoders[member] = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5))
    endings, labels = episodes(100, 0)
    fitted(model, endings, labels, steps=5)
    state = torch.get_rng_state()
    assert torch.equal(model.probabilities(endings), model.probabilities(endings))
    assert torch.equal(torch.get_rng_state(), state)


def test_huge_observations_leave_the_model_unsure():
    endings, labels = episodes(300, 0, wrong=1 / 3)
    huge = FinalSteps(endings.actions, endings.final_obs * 1e8)
    model = fitted(new_model(), huge, labels)
    assert model.temperature == max(TEMPERATURES) and model.probabilities(huge).isfinite().all()


@pytest.mark.parametrize(("steps", "stored"), [(0, 10), (5, 0)])
def test_nothing_to_fit_is_refused(steps, stored):
    endings, labels = episodes(10, 0)
    model = new_model()
    model.add(endings.select(labels[:stored] >= 0) if stored else endings.select(labels > 1), labels[:stored])
    with pytest.raises(ValueError, match=r"fit\(\) needs a stored episode .* got"):
        model.fit(steps, torch.Generator())


def test_without_any_overseen_episode_training_goes_on():
    from routed_rl.envs import DiamondGhostVecEnv

    model = small_model(DiamondGhostVecEnv(16, oversight=0.0), "reward-model")
    model.learn(3 * 128)
    assert not model.outcome_model.ready
