"""The models of an arena, and the stages that make, score and attack them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, get_args

from routed_rl.lm.chat import ChatFormat
from routed_rl.lm.inputs import model_identity
from routed_rl.lm.suppressors import SUPPRESSORS, Suppressor
from routed_rl.lm.suppressors.suppressor import UnlearningMethod
from routed_rl.lm.training import Training
from routed_rl.options.arena import ArenaOptions
from routed_rl.plugins import Plugin, Registry
from routed_rl.runs import Stage
from routed_rl.unlearning.arena.attacks import ALL_ATTACKS, ArenaAttack, FineTuning, Group, Quantisation
from routed_rl.unlearning.arena.checks import check_ranges, check_set
from routed_rl.unlearning.benchmarks import ALL_BENCHMARKS, Benchmark, BenchmarkKind
from routed_rl.unlearning.benchmarks.benchmark import Recipe, wrong_answers
from routed_rl.unlearning.procedures import PROCEDURES, Procedure
from routed_rl.unlearning.scores import ALL_SCORES, SCORES, Best, Score
from routed_rl.unlearning.undo_study.members import check_settings, make_suppressor, with_named_settings
from routed_rl.wording import written

FULL, RETRAINED, ROUTED, UNLEARN, DISTIL, CHANGED = "full", "retrained", "routed", "unlearn", "distil", "changed"
"""Kinds of stages that make a model."""
SCORE, ATTACK = "score", "attack"
"""Kinds of stages that measure a model."""
ORIGINAL = "original"
"""Role of the full model for all others. An ERA model was not made of it."""
MAKE = (FULL, RETRAINED, ROUTED, UNLEARN, DISTIL, CHANGED)
NONE = "none"
ROUNDED, RELEARNED = "rounded", "relearned"
"""Changes of models by which scores are judged."""
NUMBERS = "numbers.safetensors"
"""File of a score's numbers of single examples."""
SEED = "{seed}"
UTILITY = (
    "model-utility",
    "retained-knowledge",
    "retained-knowledge-memorisation",
    "retained-multiple-choice",
    "mmlu",
)
"""Scores that say what a model has kept. The first one that is measured counts."""
METHODS_AND_PROCEDURES: Registry[UnlearningMethod] = Registry(
    "unlearning method",
    UnlearningMethod,
    {**SUPPRESSORS, **PROCEDURES},
    "routed_rl.suppressors",
    "routed_rl.unlearning.Suppressor or routed_rl.unlearning.Procedure",
)


@dataclass(frozen=True, eq=False)
class Entry:
    """A model of the arena.

    Attributes:
        before: what the model was before the method, as in :class:`~routed_rl.options.arena.ArenaOptions`.
        method: the method that made it forget. "none": only what was before. None: it has forgotten nothing.
        then: what followed the method, as in :class:`~routed_rl.options.arena.ArenaOptions`.
        stage: makes the model.
        scores, attacks: the stages that measure it, by the name of the score or the attack.
        changed: the stages that measure it after a change, by the name of the change and of the score.
    """

    seed: int
    stage: Stage
    scores: Mapping[str, Stage]
    attacks: Mapping[str, Stage]
    before: str = NONE
    method: str | None = None
    then: str = NONE
    alpha: float | None = None
    changed: Mapping[str, Mapping[str, Stage]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The model's name in tables and figures."""
        if self.method is None:
            return self.stage.kind
        then = {"undo": f"UNDO α {self.alpha}", "distil": "distil"}
        parts = ("ERA" if self.before == "era" else NONE, self.method, then.get(self.then, NONE))
        return " + ".join(part for part in parts if part != NONE)

    def __iter__(self) -> Iterator[Stage]:
        yield self.stage
        yield from self.scores.values()
        yield from self.attacks.values()
        for of in self.changed.values():
            yield from (stage.parents["model"] for stage in of.values())
            yield from of.values()


class Arena:
    """What the options of an arena name.

    Raises:
        ValueError, OSError: for options that do not fit together, or things that are not found.
    """

    def __init__(self, options: ArenaOptions) -> None:
        self.options = options
        check_ranges(options)
        self._benchmark = ALL_BENCHMARKS.find(options.benchmark, "--benchmark")
        self.kind: BenchmarkKind = self._benchmark.kind()
        if options.model is None and self.kind.recipe is None:
            raise ValueError(f"{written('--benchmark', self._benchmark.name)} needs --model, a model that knows it")
        self.methods = METHODS_AND_PROCEDURES.find_all(options.methods, "--methods")
        check_settings(options.settings, (*METHODS_AND_PROCEDURES.built_in, *self.methods))
        self._check_methods()
        self.chat = self._chat()
        self.attacks: Mapping[str, Plugin[ArenaAttack]] = ALL_ATTACKS.find_all(options.attacks, "--attacks")
        for name, attack in self.attacks.items():
            check_set(attack, "--attacks", "group", get_args(Group))
            made = self.attack(attack)
            if options.budget < len(made.attempts):
                raise ValueError(
                    f"{written('--budget', options.budget)} is less than the {len(made.attempts)} attempts of the "
                    f"attack {name}: raise --budget, or leave the attack out"
                )
            if (why := made.undefined(self.benchmark)) is not None:
                raise ValueError(f"{written('--attacks', name)} is not possible on {self._benchmark.name}: {why}")

    def _check_methods(self) -> None:
        """Raise ValueError for a method that teaches other answers where the benchmark has no questions for them."""
        for method in self.methods.values():
            made, _ = self.method(method.reference)
            if made.alternatives == ():
                wrong_answers(self.benchmark)
            elif made.alternatives is not None and (without := [row for row in self.benchmark.forget if len(row) == 1]):
                raise ValueError(
                    f"{written('--methods', method.name)} needs forget documents that are questions with answers, but "
                    f"{len(without)} of {len(self.benchmark.forget)} are texts"
                )

    @cached_property
    def _loaded(self) -> Benchmark:
        return self.kind.load(self.options.data, self.options.split)

    def _chat(self) -> ChatFormat:
        """Return how questions are written for models that are given. Raise ValueError for options that fit nothing."""
        named = {"system": self.options.system_prompt, "question": self.options.question_format}
        chosen = {name: text for name, text in named.items() if text is not None}
        if chosen and self.options.model is None:
            raise ValueError("--system-prompt and --question-format need --model, the model that they are written for")
        if chosen and not any(example.chat for of in self.benchmark.sets.values() for example in of):
            raise ValueError(
                f"--system-prompt and --question-format change nothing: {self._benchmark.name} writes its questions as "
                "plain text"
            )
        return replace(self.kind.chat, **chosen, chosen=tuple(chosen))

    @cached_property
    def benchmark(self) -> Benchmark:
        """The benchmark, with the main score of the options."""
        main = self.options.main
        if main is None:
            return self._loaded
        score = ALL_SCORES.find(main, "--main").kind()
        return replace(self._loaded, main=main, chance=score.chance(self._loaded) or 0.0)

    @cached_property
    def digest(self) -> str:
        """A hash of the benchmark's documents and examples."""
        loaded = self._loaded
        whole = {
            "forget": [dict(row) for row in loaded.forget],
            "retain": [dict(row) for row in loaded.retain],
            "sets": {name: [asdict(example) for example in of] for name, of in loaded.sets.items()},
            "main": [loaded.main, loaded.chance],
            "texts": list(self.kind.documents(loaded)),
        }
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def main(self) -> str:
        """The short name of the benchmark's main score.

        Raises:
            ValueError: for a score that needs other models, which an attacker has not got.
        """
        found = ALL_SCORES.find(self.benchmark.main, "the benchmark's main score")
        if found.kind.compared or found.kind.needs:
            raise ValueError(
                f"the main score {found.name} compares with other models, so attacks cannot be measured by it"
            )
        if found.kind().about_kept or getattr(found.kind, "best", None) != "low":
            raise ValueError(
                f"the main score {found.name} does not rise with what a model knows of the forget set, so it cannot "
                "say what attacks bring back"
            )
        return found.name

    @property
    def utility(self) -> str | None:
        """The name of the score that says what a model has kept. None: none is measured."""
        return next((name for name in UTILITY if name in self.scores), None)

    @cached_property
    def scores(self) -> Mapping[str, Plugin[Score]]:
        """The scores that are measured, by name. The benchmark's main score is always one of them.

        Raises:
            ValueError: for a score that was asked for and is not defined for the benchmark.
        """
        asked = self.options.scores
        named = (self.benchmark.main, *(asked or self.kind.scores or SCORES))
        found = ALL_SCORES.find_all(tuple(dict.fromkeys(named)), "--scores")
        compared = self.options.model is None or self.options.retrained is not None
        kept = {}
        for name, score in found.items():
            check_set(score, "--scores", "best", get_args(Best))
            why = score.kind().undefined(self.benchmark)
            if (score.kind().compared or RETRAINED in score.kind().needs) and not compared:
                why = "it compares with a model that never learned the forget set: name one with --retrained"
            if why is None:
                kept[name] = score
            elif asked or name == self.main:
                raise ValueError(f"the score {name} is not defined for {self._benchmark.name}: {why}")
        return kept

    def attack(self, attack: Plugin[ArenaAttack]) -> ArenaAttack:
        """Return an attack with the learning rates of the options, if it is a sweep over learning rates."""
        made = attack.kind()
        if self.options.learning_rates and isinstance(made, FineTuning):
            return replace(made, learning_rates=self.options.learning_rates)
        return made

    @property
    def changes(self) -> dict[str, ArenaAttack]:
        """The changes by which scores are judged. Each is the single attempt of an attack."""
        rates = self.options.learning_rates or FineTuning().learning_rates
        middle = FineTuning(learning_rates=(sorted(rates)[len(rates) // 2],))
        return {ROUNDED: Quantisation(bits=(4,)), RELEARNED: middle} if self.options.trust else {}

    def method(self, reference: str) -> tuple[Suppressor | Procedure, Training]:
        """Return a method and its training, with the benchmark's recipe and the settings of the options."""
        settings = (*self.kind.settings, *self.options.settings)
        found = METHODS_AND_PROCEDURES.find(reference, "--methods")
        if issubclass(found.kind, Suppressor):
            return make_suppressor(settings, reference)
        made = found.kind()
        assert isinstance(made, Procedure)
        return with_named_settings(made, made.recipe, found.name, settings)

    def entries(self) -> list[Entry]:
        """Return all models: for each seed the retrained model, the full model, and those of each method."""
        options = self.options
        return [entry for seed in range(options.seeds) for entry in self._of_seed(options.first_seed + seed)]

    def _of_seed(self, seed: int) -> Iterator[Entry]:
        options = self.options
        about: dict[str, Any] = {"benchmark": self.digest}
        training = about | {"batch_size": options.batch_size}
        training |= {"rank": options.rank} if options.rank is not None else {}
        training |= {} if options.master_weights else {"master_weights": False}
        parts = {} if options.accumulate == 1 else {"accumulate": options.accumulate}
        training |= parts
        # What matters where models write, but not where they learn.
        read: dict[str, Any] = about | {"longer": self.benchmark.longer}
        read |= {"stops": list(self.benchmark.stops)} if self.benchmark.stops else {}
        full = self._known(FULL, options.model, seed)
        assert full is not None
        retrained = self._known(RETRAINED, options.retrained, seed)
        companions = {ORIGINAL: full} | ({} if retrained is None else {RETRAINED: retrained})

        def scores(model: Stage) -> dict[str, Stage]:
            return {name: self._score(score, model, companions, read) for name, score in self.scores.items()}

        def entry(stage: Stage, **keys: Any) -> Entry:
            main = self.scores[self.main]
            budget = {"budget": options.budget, "batch_size": options.batch_size, "main": main.reference} | parts
            budget |= {"main_code": main.code()}
            attacks = {
                name: Stage(
                    ATTACK,
                    read
                    | budget
                    | {"attack": attack.reference, "code": attack.code()}
                    | self._rates(attack)
                    | self._kept_after(attack),
                    seed,
                    {"model": stage, **({ORIGINAL: full} if attack.kind().needs_original else {})},
                )
                for name, attack in self.attacks.items()
            }
            changed = {}
            for name, change in self.changes.items() if keys.get("then", NONE) == NONE else ():
                config = {"change": name, "setting": repr(change), "batch_size": options.batch_size} | parts
                config |= {"steps": max(options.budget // 4, 1)}
                changed[name] = scores(Stage(CHANGED, about | config, seed, {"model": stage}))
            return Entry(seed, stage, scores(stage), attacks, changed=changed, **keys)

        if retrained is not None:
            yield entry(retrained)  # the first one, because others are compared with it
        yield entry(full)
        for before in options.before:
            unlearned = {}
            model = full
            if before == "era":
                config: dict[str, Any] = {
                    "benchmark": self.digest,
                    "recipe": asdict(self.recipe),
                    "routing": asdict(options.routing),
                }
                unlearned[NONE] = model = Stage(ROUTED, config, seed, {})
            for name, method in self.methods.items():
                made, recipe = self.method(method.reference)
                config = {"method": method.reference, "code": method.code(), "settings": repr(made)}
                config |= {"steps": recipe.steps, "learning_rate": recipe.learning_rate}
                unlearned[name] = Stage(UNLEARN, training | config, seed, {"model": model})
            for (name, teacher), then in product(unlearned.items(), options.then):
                for alpha in options.alphas if then == "undo" else (None,):
                    stage = teacher
                    if then != NONE:
                        noise = {"alpha": alpha, "beta": options.beta} if then == "undo" else {"new": True}
                        stage = Stage(DISTIL, training | noise | asdict(options.student), seed, {"teacher": teacher})
                    yield entry(stage, before=before, method=name, then=then, alpha=alpha)

    def _rates(self, attack: Plugin[ArenaAttack]) -> dict[str, Any]:
        made = self.attack(attack)
        return {"learning_rates": made.learning_rates} if isinstance(made, FineTuning) else {}

    def _kept_after(self, attack: Plugin[ArenaAttack]) -> dict[str, Any]:
        """The score of what a model has kept after an attack on its weights. Other attacks leave the model as it is."""
        if attack.kind.group != "weights" or self.utility is None:
            return {}
        return {"utility": self.scores[self.utility].reference, "utility_code": self.scores[self.utility].code()}

    def _score(self, score: Plugin[Score], model: Stage, known: Mapping[str, Stage], about: Mapping[str, Any]) -> Stage:
        """Return the stage of a model's score, after that of the retrained model where they are compared."""
        kind, retrained = score.kind(), known.get(RETRAINED)
        config = {**about, "score": score.reference, "code": score.code()}
        parents = {"model": model, **{role: known[role] for role in kind.needs}}
        if kind.compared and retrained is not None and model is not retrained:
            parents["compared"] = self._score(score, retrained, known, about)
        return Stage(SCORE, config, model.seed, parents)

    def _known(self, kind: str, given: str | None, seed: int) -> Stage | None:
        """Return the stage of the full or of the retrained model. None: there is no such model."""
        if given is not None:
            config: dict[str, Any] = {"given": model_identity(given.replace(SEED, str(seed)))}
            config |= {} if self.chat == ChatFormat() else {"chat": asdict(self.chat)}
            return Stage(kind, config, seed, {})
        if self.options.model is not None:
            return None
        return Stage(kind, {"benchmark": self.digest, "recipe": asdict(self.recipe)}, seed, {})

    @property
    def recipe(self) -> Recipe:
        """How the arena trains models of its own."""
        assert self.kind.recipe is not None
        return self.kind.recipe
