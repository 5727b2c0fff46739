"""RoutedPPO as a Stable-Baselines3 algorithm; it must never use unseen outcomes or lose exactness."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnvWrapper, VecMonitor

from routed_rl.envs import DiamondGhostVecEnv
from routed_rl.rl import METHODS, Overseer, RoutedPPO, check_oversight_env
from routed_rl.routing import LabelNoise

from .worlds import VALUES, TwoDoors, fingerprint, small_model, two_doors


class Rows(KVWriter):
    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append({k: v for k, v in key_values.items() if not k.startswith("time/")})

    def close(self):
        pass


def learn(model, steps, **options):
    rows = Rows()
    model.set_logger(Logger(None, [rows]))
    model.learn(steps, **options)
    return rows.rows


class PermutedUnseen(VecEnvWrapper):
    """Replaces the outcomes and rewards of episodes that were not overseen by random ones."""

    def __init__(self, venv, seed):
        super().__init__(venv)
        self.rng = np.random.default_rng(seed)

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        infos = [dict(info) for info in infos]
        for i in np.flatnonzero(dones):
            if not infos[i]["overseen"]:
                if infos[i]["outcome"] is not None:
                    infos[i]["outcome"] = str(self.rng.choice(["ghost", "diamond"]))
                rewards[i] = self.rng.normal()
        return obs, self.rng.permutation(rewards), dones, infos


@pytest.mark.parametrize("unfinished", ["unlabelled", "hold"])
@pytest.mark.parametrize("unlabelled", ["all", "none", "predicted"])
@pytest.mark.parametrize("method", METHODS)
def test_unseen_outcomes_change_nothing_the_learner_computes(method, unlabelled, unfinished):
    solo = 0.5 if unlabelled == "predicted" else 0.0
    results = []
    for seed in (1, 2):
        env = PermutedUnseen(DiamondGhostVecEnv(16, oversight=0.5), seed)
        overseer = Overseer(VALUES, method, unlabelled=unlabelled, noise=LabelNoise(0.1, 0.1), oversight=0.3)
        model = small_model(env, overseer=overseer, unfinished=unfinished, solo=solo)
        if model.outcome_model is not None:
            model.outcome_model.min_confidence = 0.0
        rows = learn(model, 2 * 128)
        assert (model.outcome_model is None) or rows[-1]["outcome_model/predicted"] > 0.9
        for row in rows:
            row.pop("outcome_model/right", None)  # for the reader of the log: the learner does not have it
        results.append((rows, fingerprint(model)))
    assert (results[0] == results[1]) == (method != "oracle")


def test_array_channel_and_infos_teach_the_same():
    fast, slow = DiamondGhostVecEnv(16, oversight=0.3), VecMonitor(DiamondGhostVecEnv(16, oversight=0.3))
    models = [small_model(env) for env in (fast, slow)]
    rows = [learn(model, 5 * 128) for model in models]
    assert rows[0] == [{name: row[name] for name in rows[0][0]} for row in rows[1]]
    weights = [{k: v for k, v in fingerprint(m).items() if not k.startswith(("env.", "episodes."))} for m in models]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n_envs", "oversight"), [(1, 0.0), (1, 1.0), (16, 0.0), (16, 1.0), (16, 0.02)])
def test_no_nan_anywhere(method, n_envs, oversight):
    model = small_model(DiamondGhostVecEnv(n_envs, oversight=oversight), method)
    rows = learn(model, 6 * 8 * n_envs)
    assert len(rows) == 6
    for row in rows:
        assert np.isfinite(list(row.values())).all(), row
    for parameter in model.policy.parameters():
        assert parameter.isfinite().all()


@pytest.mark.parametrize("unfinished", ["hold", "unlabelled"])
@pytest.mark.parametrize("labels", [{"ghost": 1.0, "diamond": 0.0}, {"ghost": 0.0, "diamond": 1.0}])
def test_a_batch_with_only_one_label(labels, unfinished):
    model = small_model(DiamondGhostVecEnv(4, oversight=labels), unfinished=unfinished)
    rows = learn(model, 6 * 8 * 4)
    assert all(np.isfinite(list(row.values())).all() for row in rows)


@pytest.mark.parametrize("terminals", [{"exit": 1.0}, {"ghost": -1.0, "diamond": 1.0, "fire": -2.0, "coin": 0.5}])
def test_any_number_of_behaviours(terminals, tmp_path):
    model = small_model(DiamondGhostVecEnv(16, oversight=0.5, terminals=terminals), overseer=Overseer(terminals))
    rows = learn(model, 5 * 128)
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert model.policy.module_names == tuple(terminals)
    model.steer("exit" if len(terminals) == 1 else "fire")
    model.save(tmp_path / "model")
    assert RoutedPPO.load(tmp_path / "model", device="cpu").policy.steering == model.policy.steering


def test_a_module_that_no_sample_may_teach_does_not_move_by_a_bit():
    """Ghost is never overseen and ``unlabelled="none"``, so its module and Adam's state keep their bits."""
    env = DiamondGhostVecEnv(16, oversight={"ghost": 0.0, "diamond": 0.5})
    model = small_model(env, overseer=Overseer(VALUES, unlabelled="none"))
    before = [p.detach().clone() for p in model.policy.module_parameters("ghost")]
    taught = [p.detach().clone() for p in model.policy.module_parameters("diamond")]
    model.learn(6 * 128)
    ghost = model.policy.module_parameters("ghost")
    assert all(torch.equal(a, b) for a, b in zip(ghost, before, strict=True))
    assert not any(model.policy.optimizer.state[p] for p in ghost)
    assert not any(torch.equal(a, b) for a, b in zip(model.policy.module_parameters("diamond"), taught, strict=True))


def test_unlabelled_episodes_teach_the_policy_nothing_in_the_strict_reading():
    model = small_model(DiamondGhostVecEnv(16, oversight=0.0), overseer=Overseer(VALUES, unlabelled="none"))
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(4 * 128)
    moved = {name for name, p in model.policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("value" in name for name in moved)


class Interrupt(BaseCallback):
    """Draws random numbers at every step, and interrupts the rollout at step ``at_step``."""

    def __init__(self, at_step=None):
        super().__init__()
        self.at_step = at_step

    def _on_step(self):
        torch.rand(3)
        if self.num_timesteps == self.at_step:
            raise KeyboardInterrupt
        return True


def test_a_rollout_that_breaks_off_is_forgotten(tmp_path):
    """Otherwise its steps would be learned with the next rollout, under the labels of that rollout."""
    model = small_model(DiamondGhostVecEnv(16, oversight=1.0))
    with pytest.raises(KeyboardInterrupt):
        model.learn(128, callback=Interrupt(at_step=64))
    learned = []
    policy_loss = model.policy_loss
    model.policy_loss = lambda batch, log_probs: learned.append(len(log_probs)) or policy_loss(batch, log_probs)
    model.learn(64 + 128, reset_num_timesteps=False)
    assert sum(learned) == model.n_epochs * 128 * (model.num_timesteps - 64) // 128


def test_what_callbacks_draw_changes_nothing():
    models = [small_model(), small_model()]
    for model, callback in zip(models, (None, Interrupt()), strict=True):
        model.learn(3 * 128, callback=callback)
    assert fingerprint(models[0]) == fingerprint(models[1])


def test_every_update_logs_the_same_columns_also_with_nothing_to_learn():
    rows = learn(small_model(DiamondGhostVecEnv(1, oversight=0.3), n_steps=2, unfinished="hold", seed=1), 40)
    assert len(rows) == 20 and len({tuple(row) for row in rows}) == 1
    assert rows[0]["train/policy_loss"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1.5}, "1.5"),
        ({"batch_size": 0}, "batch_size"),
        ({"n_epochs": 0}, "n_epochs"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"ent_coef": LinearSchedule(0.1, -1.0, 1.0)}, "ent_coef.*-1"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"unfinished": "drop"}, "'drop'"),
    ],
)
def test_bad_hyperparameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small_model(**options)


def test_same_seed_same_bits_whatever_the_global_generators_say():
    prints = []
    for noise in (0, 1):
        model = small_model(seed=5)
        torch.manual_seed(noise)
        np.random.seed(noise)
        model.learn(4 * 128)
        prints.append(fingerprint(model))
    assert prints[0] == prints[1]
    other = small_model(seed=6)
    other.learn(4 * 128)
    assert fingerprint(other) != prints[0]


def test_learning_leaves_the_global_generator_alone():
    model = small_model()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model.learn(2 * 128)
    assert torch.equal(before, torch.get_rng_state())


def test_stable_baselines3_interface(tmp_path):
    env = DiamondGhostVecEnv(4, oversight=0.3)
    model = small_model(env, tensorboard_log=str(tmp_path / "tb"))
    callbacks = [
        CheckpointCallback(save_freq=8, save_path=str(tmp_path / "checkpoints")),
        EvalCallback(
            VecMonitor(DiamondGhostVecEnv(4)),
            n_eval_episodes=4,
            eval_freq=8,
            best_model_save_path=str(tmp_path),
            verbose=0,
        ),
    ]
    model.learn(64, callback=callbacks)
    assert model.num_timesteps == 64
    saved = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in saved] == ["rl_model_32_steps.zip", "rl_model_64_steps.zip"]
    assert RoutedPPO.load(saved[0]).num_timesteps == 32
    assert RoutedPPO.load(tmp_path / "best_model.zip", device="cpu").policy.module_names == (
        "ghost",
        "diamond",
    )
    assert list((tmp_path / "tb").rglob("events.*"))
    mean, _ = evaluate_policy(model, VecMonitor(DiamondGhostVecEnv(4)), n_eval_episodes=8)
    assert -1 <= mean <= 1
    actions, _ = model.predict(env.reset(), deterministic=True)
    assert actions.shape == (4,)
    model.set_env(DiamondGhostVecEnv(4, oversight=0.9))
    model.learn(32, reset_num_timesteps=False)
    assert model.num_timesteps == 96


def test_steps_whose_episode_was_cut_by_a_reset_are_forgotten():
    """Otherwise they would be learned under the label of the next episode in the same environment."""
    model = small_model(unfinished="hold")
    model.learn(128)
    assert model.buffer.waiting.any()
    learned = []
    train = model.buffer.finish_rollout
    model.buffer.finish_rollout = lambda *arguments: learned.append(train(*arguments)) or learned[-1]
    model.learn(128)
    assert len(learned[0].labels) <= 128 - int(model.buffer.waiting.sum())
    model.learn(256, reset_num_timesteps=False, callback=lambda *_: model.num_timesteps < 300)
    assert not model.buffer.waiting.any(), "a rollout that a callback stopped is not half learned"


def test_learning_while_steered_is_refused():
    model = small_model()
    with model.steered("diamond"), pytest.raises(ValueError, match="steered"):
        model.learn(128)


def test_a_gymnasium_environment_with_the_info_contract_is_learned():
    """A policy steered to a door must walk to this door. All seeds tried were far above the bar (worst: 0.97)."""
    for seed in range(2):
        overseer = Overseer({"bad": -1, "good": 1})
        model = small_model(two_doors(), overseer=overseer, seed=seed, learning_rate=3e-3, n_steps=16, batch_size=256)
        model.learn(6_000)
        for door, expected in (("good", 1.0), ("bad", -1.0)):
            with model.steered(door):
                mean, _ = evaluate_policy(model, two_doors(8), n_eval_episodes=100, warn=False)
            assert mean * expected > 0.8, (seed, door, mean)


class Broken(TwoDoors):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def step(self, action):
        *result, info = super().step(action)
        if info:
            self.change(info)
        return (*result, info)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.pop("outcome"), "lacks 'outcome'.*bad"),
        (lambda info: info.pop("overseen"), "lacks 'overseen'"),
        (lambda info: info.update(outcome="great"), "'great'"),
        (lambda info: info.update(overseen="yes"), "'yes'"),
    ],
)
def test_checker_and_learner_say_what_an_environment_lacks(change, message):
    with pytest.raises(ValueError, match=message):
        check_oversight_env(Broken(change), ["bad", "good"])
    model = small_model(Broken(change), overseer=Overseer({"bad": -1, "good": 1}))
    with pytest.raises(ValueError, match=message):
        model.learn(500)


def test_checker_passes_good_environments_and_knows_wrong_outcomes():
    counts = check_oversight_env(TwoDoors(), ["bad", "good"])
    assert list(counts) == ["bad", "good", "none"] and counts["none"]["overseen"] == 0
    assert sum(sum(kinds.values()) for kinds in counts.values()) == 100
    assert all(count > 5 for name in ("bad", "good") for count in counts[name].values())
    counts = check_oversight_env(DiamondGhostVecEnv(4, oversight={"ghost": 0.0, "diamond": 1.0}), ["ghost", "diamond"])
    assert counts["ghost"]["overseen"] == counts["diamond"]["unseen"] == 0
    with pytest.raises(ValueError, match=r"fire.*'ghost'"):
        check_oversight_env(DiamondGhostVecEnv(4, seed=0), ["fire", "diamond"])


@pytest.mark.parametrize("outcomes", [{"bad": -1, "good": 1}, Overseer({"bad": -1, "good": 1}).values, ("bad", "good")])
def test_checker_takes_outcomes_with_their_values(outcomes):
    assert list(check_oversight_env(TwoDoors(), outcomes, episodes=10)) == ["bad", "good", "none"]


@pytest.mark.parametrize("outcomes", ["good", Overseer({"good": 1}), None])
def test_checker_refuses_what_are_no_names(outcomes):
    with pytest.raises(ValueError, match=r"outcomes must be names of outcomes, as in \['ghost', 'diamond'\], got"):
        check_oversight_env(TwoDoors(), outcomes)


def test_checker_says_that_no_label_will_come():
    with pytest.raises(ValueError, match=r"'outcome'.* was None in all of \d+ random episodes.*'bad', 'good'"):
        check_oversight_env(Broken(lambda info: info.update(outcome=None)), ["bad", "good"], episodes=10)
    with pytest.warns(UserWarning, match=r"'overseen'.* was False in all of \d\d+ random episodes.*oversee more"):
        counts = check_oversight_env(TwoDoors(oversight=0.0), ["bad", "good"], episodes=10)
    assert counts["good"]["unseen"] > 0


def test_outcomes_are_matched_by_name_whatever_their_order():
    """For the overseer Diamond is outcome 0, for the environment Ghost is; only Diamond is ever overseen."""
    env = DiamondGhostVecEnv(16, oversight={"ghost": 0.0, "diamond": 1.0})
    rows = learn(small_model(env, overseer=Overseer({"diamond": 1, "ghost": -1})), 3 * 128)
    assert all(row["rollout/label_diamond"] > 0 and row["rollout/label_ghost"] == 0 for row in rows)
