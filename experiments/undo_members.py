"""The models of ``routed-rl undo``, and the stages that make and attack them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

from experiments.language import Text, files_identity
from experiments.undo_commands import Undo
from routed_rl.lm import Training
from routed_rl.runs import Stage
from routed_rl.unlearning import SUPPRESSORS

STAGES = "stages"
BETAS_AT = 0.6
"""Further betas are tried at the alpha that is nearest to this, which UNDO recommends."""
SUPPRESSED_ROWS = 64
"""Rows of each kind in a step of suppression."""


@dataclass(frozen=True, eq=False)
class Member:
    """A model of the study: what it is called, the stage that makes it and the one that attacks it."""

    model: str
    seed: int
    stage: Stage
    attack: Stage
    suppressor: str | None = None
    strength: float | None = None
    labelled: float | None = None
    alpha: float | None = None
    beta: float | None = None

    @property
    def name(self) -> str:
        """What it is called in tables and figures."""
        parts = [self.model, self.suppressor]
        if self.alpha is not None:
            parts += [f"α {self.alpha:g}", f"β {self.beta:g}"]
        if self.strength not in (None, 1.0):
            parts.append(f"strength {self.strength:g}")
        if self.labelled not in (None, 1.0):
            parts.append(f"{100 * self.labelled:g} % labelled")
        return ", ".join(part for part in parts if part)

    def keys(self) -> dict[str, Any]:
        """Its columns in the table of results."""
        keys = {field.name: getattr(self, field.name) for field in fields(self)}
        stages = {name: f"{stage.kind}-{stage.key}" for name in ("stage", "attack") if (stage := keys.pop(name))}
        return {"name": self.name, **keys, **stages}


def members(command: Undo, text: Text) -> list[Member]:
    """All models of a study, each after those that it goes on from.

    The first suppressor, with the first share of labels and at strength 1, is the main one: its teacher alone is
    noised, and in its stead alone there are others with fewer labels or of another strength.
    """
    common = {
        name: getattr(command, name) for name in ("length", "precision", "batch_size", "metric", "test_documents")
    }
    common |= {"text": text.digest, "model": files_identity(command)["model"]}
    if command.metric == "answers":
        common["answer"] = command.answer
    errors = {"miss_rate": command.miss_rate, "flip_rate": command.flip_rate}
    distilled = {"distil": asdict(command.distil), "stops": True}
    pretrained = {"pretrain": asdict(command.pretrain)}
    main_beta, *other_betas = command.betas
    noises = [(alpha, main_beta) for alpha in command.alphas]
    noises += [(min(command.alphas, key=lambda alpha: abs(alpha - BETAS_AT)), beta) for beta in other_betas]
    main, most = command.suppress[0], command.labelled[0]
    teachers = [(method, 1.0, most) for method in command.suppress]
    teachers += [(main, 1.0, other) for other in command.labelled[1:]]
    teachers = list(dict.fromkeys(teachers + [(main, strength, most) for strength in command.strengths]))
    found: list[Member] = []

    def add(
        reference: Stage, model: str, kind: str, config: Mapping[str, Any], parents: Mapping[str, Stage], **keys: Any
    ) -> Stage:
        seed = reference.seed
        stage = Stage(kind, {**common, **config}, seed, parents)
        of = {"model": stage, "reference": reference}
        attack = Stage("attack", {**common, "relearn": asdict(command.relearn)}, seed, of)
        found.append(Member(model, seed, stage, attack, **keys))
        return stage

    for seed in range(command.first_seed, command.first_seed + command.seeds):
        whole = {**pretrained, "left_out": 0.0}
        reference = Stage("pretrain", {**common, **whole}, seed, {})
        add_to = partial(add, reference)
        add_to("reference", "pretrain", whole, {})
        if command.filtered:
            filtered = add_to("filtered", "pretrain", {**pretrained, "left_out": 1.0}, {})
            for left_out in command.labelled:
                if left_out < 1:
                    add_to(
                        "filtered", "pretrain", {**pretrained, **errors, "left_out": left_out}, {}, labelled=left_out
                    )
        for method, strength, labelled in teachers:
            keys = {"suppressor": method, "strength": strength, "labelled": labelled}
            suppressor = SUPPRESSORS[method]()
            recipe = suppressor.recipe
            recipe = replace(recipe, steps=max(round(strength * recipe.steps), 1), precision=command.precision)
            config = {"method": method, "settings": asdict(suppressor), "recipe": asdict(recipe), "labelled": labelled}
            config |= {"rows": SUPPRESSED_ROWS, **errors}
            teacher = add_to("suppressed", "suppress", config, {"reference": reference}, **keys)
            parents = {"teacher": teacher, "reference": reference}
            if "new" in command.students:
                add_to("distilled", "distil", {**distilled, "student": "new"}, parents, **keys)
            if "noised" in command.students and (method, strength, labelled) == teachers[0]:
                for alpha, beta in noises:
                    noise = {"alpha": alpha, "beta": beta}
                    add_to("undo", "distil", {**distilled, "student": "noised", **noise}, parents, **keys, **noise)
        if command.oracle:
            parents = {"teacher": filtered, "reference": reference}
            slower = replace(command.distil, learning_rate=command.distil.learning_rate / 2)
            for student, settings in (("new", command.distil), ("reference", slower)):
                config = {"distil": asdict(settings), "stops": False, "student": student}
                add_to(f"matched, {student}", "distil", config, parents)
    return found


def training_of(stage: Stage, accumulate: int) -> Training:
    """How the model of a stage is trained."""
    config: Mapping[str, Any] = stage.config
    if stage.kind == "suppress":
        return Training(**config["recipe"])
    common = {"accumulate": accumulate, "precision": config["precision"]}
    if stage.kind == "pretrain":
        return Training(**config["pretrain"], **common)
    names = ("steps", "learning_rate", "warmup")
    return Training(**{name: config["distil"][name] for name in names}, weight_decay=0.0, **common)


def total_steps(stage: Stage) -> int:
    """How many gradient steps a stage has at most."""
    config: Mapping[str, Any] = stage.config
    if stage.kind == "attack":
        return int(config["relearn"]["steps"] * len(config["relearn"]["learning_rates"]))
    return training_of(stage, 1).steps
