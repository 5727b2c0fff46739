"""The models of an UNDO study, and the stages that make, attack and measure them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from routed_rl.errors import at_least
from routed_rl.lm import Training
from routed_rl.lm.folders import ADAPTER, CONFIG, check_folder
from routed_rl.lm.inputs import Text, model_identity
from routed_rl.lm.suppressors import METHODS, SUPPRESSORS
from routed_rl.lm.suppressors.sam import Sam
from routed_rl.lm.suppressors.suppressor import Suppressor
from routed_rl.options.conform import from_text, takes_text
from routed_rl.options.undo import Distil, UndoOptions
from routed_rl.plugins import Plugin
from routed_rl.runs import Stage
from routed_rl.unlearning.procedures import PROCEDURES, Procedure
from routed_rl.unlearning.tuning import FACTORS, around, together
from routed_rl.unlearning.undo_study.measuring import ATTACK, MEASURES, METRICS, Measurer, Measuring, metric_identity
from routed_rl.wording import did_you_mean, spoken, written

TRAIN = "train"
BETAS_AT = 0.6
"""Further betas are used at the alpha nearest to this value, which UNDO recommends."""


@dataclass(frozen=True, eq=False)
class Member:
    """A model of the study: its kind and settings, the stage that makes it, and those that attack and measure it."""

    model: str
    seed: int
    stage: Stage
    measuring: Measuring
    suppressor: str | None = None
    strength: float | None = None
    labelled: float | None = None
    alpha: float | None = None
    beta: float | None = None

    @property
    def name(self) -> str:
        """The model's name in tables and figures."""
        return model_name(self.model, self.suppressor, self.strength, self.labelled, self.alpha, self.beta)

    def keys(self) -> dict[str, Any]:
        """Return the model's key columns in the table of results."""
        keys = {field.name: getattr(self, field.name) for field in fields(self)}
        del keys["stage"], keys["measuring"]
        return {"name": self.name, **keys, "stage": f"{self.stage.kind}-{self.stage.key}"}

    @property
    def stages(self) -> list[Stage]:
        """The stage that makes the model, and all that attack and measure it."""
        return [self.stage, *self.measuring]


def model_name(
    model: str,
    suppressor: str | None = None,
    strength: float | None = None,
    labelled: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
) -> str:
    """Return a model's name in tables and figures. The arguments are the fields of :class:`Member`."""
    parts = [model, suppressor]
    if alpha is not None:
        parts += [f"α {alpha:g}", f"β {beta:g}"]
    if strength not in (None, 1.0):
        parts.append(f"strength {strength:g}")
    if labelled not in (None, 1.0):
        parts.append(f"{100 * labelled:g} % labelled")
    return ", ".join(part for part in parts if part)


def members(command: UndoOptions, text: Text) -> list[Member]:
    """Return all models of a study, each after the models that it is made from.

    The first suppressor listed is the main one. Only its teacher is noised, and only it is repeated with fewer labels
    or other strengths. Teachers made elsewhere are noised too.
    """
    of_all = ("length", "pack", "precision", "batch_size")
    common: dict[str, Any] = {name: getattr(command, name) for name in of_all}
    common |= {"text": text.digest, "model": model_identity(command.model)}
    learning = {"rank": command.rank} if command.rank is not None else {}
    learning |= {} if command.master_weights else {"master_weights": False}
    measurer = Measurer(command, text)
    errors = {"miss_rate": command.miss_rate, "flip_rate": command.flip_rate}
    distilled = {"distil": _settings(command.distil), "stops": _stops(command), **learning}
    pretrained = {"pretrain": asdict(command.pretrain)} | ({} if command.master_weights else {"master_weights": False})
    main_beta, *other_betas = command.betas
    noises = [(alpha, main_beta) for alpha in command.alphas]
    noises += [(min(command.alphas, key=lambda alpha: abs(alpha - BETAS_AT)), beta) for beta in other_betas]
    methods = named_suppressors(command)
    codes = {name: method.code() for name, method in methods.items()}
    main, most = next(iter(methods)), command.labelled[0]
    teachers = [(method, 1.0, most) for method in methods]
    teachers += [(main, 1.0, other) for other in command.labelled[1:]]
    teachers = list(dict.fromkeys(teachers + [(main, strength, most) for strength in command.strengths]))
    found: list[Member] = []

    def add(
        reference: Stage, model: str, kind: str, config: Mapping[str, Any], parents: Mapping[str, Stage], **keys: Any
    ) -> Stage:
        stage = Stage(kind, {**common, **config}, reference.seed, parents)
        found.append(Member(model, stage.seed, stage, measurer.of(stage, reference), **keys))
        return stage

    def distil(reference: Stage, teacher: Stage, noised: bool, **keys: Any) -> None:
        parents = {"teacher": teacher, "reference": reference}
        if "new" in command.students:
            add(reference, "distilled", "distil", {**distilled, "student": "new"}, parents, **keys)
        if "noised" in command.students and noised:
            for alpha, beta in noises:
                config = {**distilled, "student": "noised", "alpha": alpha, "beta": beta}
                if command.localised < 1:
                    config["localised"] = command.localised
                if command.touched != "all":
                    config["touched"] = command.touched
                add(reference, "undo", "distil", config, parents, **keys, alpha=alpha, beta=beta)

    for seed in range(command.first_seed, command.first_seed + command.seeds):
        whole = {**pretrained, "left_out": 0.0}
        reference = Stage("pretrain", {**common, **whole}, seed, {})
        add_to = partial(add, reference)
        add_to("reference", "pretrain", whole, {})
        if command.filtered == TRAIN:
            filtered = add_to("filtered", "pretrain", {**pretrained, "left_out": 1.0}, {})
            for left_out in command.labelled:
                if left_out < 1:
                    add_to(
                        "filtered", "pretrain", {**pretrained, **errors, "left_out": left_out}, {}, labelled=left_out
                    )
        elif command.filtered is not None:
            filtered = add_to("filtered", "filtered", {"given": model_identity(given_filtered(command, seed))}, {})
        for method, strength, labelled in teachers:
            keys = {"suppressor": method, "strength": strength, "labelled": labelled}
            suppressor, recipe = make_suppressor(command.settings, methods[method].reference)
            steps = asdict(replace(recipe, precision=command.precision))
            del steps["accumulate"]  # changes rounding only, except for repnoise and perhaps plug-ins, see below
            config: dict[str, Any] = {"method": methods[method].reference, "settings": asdict(suppressor)}
            config |= {"recipe": steps, "labelled": labelled}
            if suppressor.alternatives is not None:
                config["alternatives"] = list(suppressor.alternatives)
            if codes[method]:
                config["code"] = codes[method]
            if codes[method] or method == "repnoise":
                config["parts"] = command.processes * suppression_parts(command, suppressor.alternatives is not None)
            config |= {"rows": command.suppress_rows, **errors, **learning}
            parents = {"reference": reference}
            if command.tune is not None:
                # Without validation documents, those that are measured are left out.
                apart = {"documents": command.test_documents} if command.validation is None else {}
                tried = {"factors": {name: list(factors) for name, factors in FACTORS.items()}}
                parents["tuned"] = Stage("tune", {**common, **config, **apart, **tried}, seed, parents.copy())
                config["keep"] = command.tune
            config["recipe"] = with_strength(steps, strength)
            if strength != 1:
                config["strength"] = strength
            teacher = add_to("suppressed", "suppress", config, parents, **keys)
            distil(reference, teacher, (method, strength, labelled) == teachers[0], **keys)
        for name, folder in given_teachers(command, seed).items():
            teacher = add_to("suppressed", "given", {"given": model_identity(folder)}, {}, suppressor=name)
            distil(reference, teacher, True, suppressor=name)
        if command.oracle:
            parents = {"teacher": filtered, "reference": reference}
            slower = replace(command.distil, learning_rate=command.distil.learning_rate / 2)
            for student, settings in (("new", command.distil), ("reference", slower)):
                config = {"distil": _settings(settings), "stops": None, "student": student, **learning}
                add_to(f"matched, {student}", "distil", config, parents)
    return found


def with_strength(recipe: Mapping[str, Any], strength: float) -> dict[str, Any]:
    """Return the training settings of a suppressor with this factor on its number of steps."""
    return {**recipe, "steps": max(round(strength * recipe["steps"]), 1)}


def stop_metric(command: UndoOptions) -> str:
    """Return the metric by which distillation stops."""
    return METRICS.find(command.distil.metric or command.metric[0], "--distil.metric").reference


def _settings(distil: Distil) -> dict[str, Any]:
    """Return how students are distilled, without what is in :func:`_stops`."""
    return {name: value for name, value in asdict(distil).items() if name not in ("metric", "documents")}


def _stops(command: UndoOptions) -> dict[str, Any] | None:
    """Return what decides when distillation stops; None: it does all steps."""
    if command.distil.within is None:
        return None
    return metric_identity(command, stop_metric(command), command.distil.documents)


def even_parts(command: UndoOptions, rows: int, least: int = 1) -> int:
    """Return the parts in which each process computes its share of some rows: at most as many as the options say.

    Args:
        least: smallest number of rows in a part, where that is possible.
    """
    share = rows // command.processes
    return max((n for n in range(2, command.accumulate + 1) if share % n == 0 and share // n >= least), default=1)


def suppression_parts(command: UndoOptions, paired: bool = False) -> int:
    """Return :func:`even_parts` of a batch of suppression. Each part has at least two rows of both kinds.

    Args:
        paired: whether each forget row has an alternative row, which must stay with it.
    """
    return even_parts(command, (1 if paired else 2) * command.suppress_rows, least=2 if paired else 4)


def named_suppressors(command: UndoOptions) -> dict[str, Plugin[Suppressor]]:
    """Return the suppressors of the options, by the short names that tables and settings have.

    Raises:
        ValueError: for a suppressor that is not found, two with the same name, settings of any other name, or a
            procedure.
    """
    if procedures := [name for name in command.suppress if name in PROCEDURES]:
        raise ValueError(
            f"{written('--suppress', procedures[0])} is a procedure of its own stages, and a study trains one stage: "
            f"run unlearn(…, method={procedures[0]!r}) in Python, and pass its result in "
            f"{spoken('--teachers')} NAME=FOLDER"
        )
    found = METHODS.find_all(command.suppress, "--suppress")
    check_settings(command.settings, (*SUPPRESSORS, *found))
    return found


def make_suppressor(settings: Sequence[str], method: str) -> tuple[Suppressor, Training]:
    """Return a suppressor and its training, with the settings of the options. SAM is that of MaxEnt with its settings.

    Args:
        settings: those of all methods; those of other methods are left out.
        method: as :attr:`UndoOptions.suppress` names one.

    Raises:
        ValueError: for a method that is not found, settings that it does not have, or values of another type.
    """
    found = METHODS.find(method, "--suppress")
    suppressor, name_of_method = found.kind(), found.name
    recipe = suppressor.recipe
    if type(suppressor) is Sam:
        inner, recipe = make_suppressor(settings, "maxent")
        suppressor = replace(suppressor, of=inner)
    return with_named_settings(suppressor, recipe, name_of_method, settings)


Made = TypeVar("Made", bound=Suppressor | Procedure)


def with_named_settings(method: Made, recipe: Training, whose: str, settings: Sequence[str]) -> tuple[Made, Training]:
    """Return a method and its training with those of the settings that are ``whose.NAME=VALUE``.

    Raises:
        ValueError: for settings that it does not have, or values of another type.
    """
    hints = get_type_hints(type(method))
    kinds = {field.name: hints[field.name] for field in fields(method) if takes_text(hints[field.name])}
    of_recipe = {"steps": recipe.steps, "learning_rate": recipe.learning_rate}
    kinds |= {name: type(value) for name, value in of_recipe.items()}
    given: dict[str, Any] = {}
    for setting in settings:
        own, name, value = _parts(setting)
        if own != _plain(whose):
            continue
        if name not in kinds:
            nearest = did_you_mean(name, kinds)
            raise ValueError(
                f"--settings {setting}: the settings of {whose} are {', '.join(map(repr, kinds))}{nearest}"
            )
        try:
            given[name] = from_text(kinds[name], value)
        except ValueError as error:
            raise ValueError(f"--settings {setting}: {value!r} is not {error}") from None
    at_least(1, **{f"settings {whose}.steps": given.get("steps", 1)})
    if not 0 < given.get("learning_rate", 1.0) < math.inf:
        raise ValueError(f"--settings {whose}.learning_rate must be above 0, got {given['learning_rate']}")
    recipe = replace(recipe, **{name: given.pop(name) for name in of_recipe if name in given})
    try:
        return replace(method, **given), recipe
    except ValueError as error:
        raise ValueError(f"--settings of {whose}: {error}") from None


def check_settings(settings: Sequence[str], names: Iterable[str]) -> None:
    """Raise ValueError for a setting of a method whose name is none of these."""
    known = {_plain(name): name for name in names}
    for setting in settings:
        whose = _parts(setting)[0]
        if whose not in known:
            raise ValueError(
                f"--settings must be METHOD.NAME=VALUE, with a METHOD of {', '.join(known.values())}, got {setting!r}"
                f"{did_you_mean(whose, known)}"
            )


def _parts(setting: str) -> tuple[str, str, str]:
    """Return the method, the name and the value of ``METHOD.NAME=VALUE``; hyphens of the first two are underscores."""
    name, _, value = setting.partition("=")
    whose, _, name = _plain(name).partition(".")
    return whose, name, value


def _plain(name: str) -> str:
    return name.replace("-", "_")


def given_teachers(command: UndoOptions, seed: int) -> dict[str, str]:
    """Return the folders of the teachers made elsewhere, by name.

    Raises:
        ValueError, OSError: for an entry without name or folder, a name that is taken, or a folder without a model.
    """
    found: dict[str, str] = {}
    taken = {*SUPPRESSORS, *named_suppressors(command)} if command.teachers else set()
    for given in command.teachers:
        name, _, folder = given.partition("=")
        if not name or not folder or name in found or name in taken:
            raise ValueError(f"--teachers must be NAME=FOLDER, with a NAME that is not taken, got {given!r}")
        found[name] = folder.replace("{seed}", str(seed))
        _check_given(f"{written('--teachers', given)}", found[name])
    return found


def given_filtered(command: UndoOptions, seed: int) -> str:
    """Return the folder or name of a filtered model that was made elsewhere.

    Raises:
        ValueError, OSError: for a folder without a model.
    """
    assert command.filtered is not None
    name = command.filtered.replace("{seed}", str(seed))
    if Path(name).is_absolute():
        _check_given(f"{written('--filtered', command.filtered)}", name)
    return name


def _check_given(option: str, folder: str) -> None:
    if not any(Path(folder, file).is_file() for file in (CONFIG, ADAPTER)):
        raise ValueError(f"{option}: there is no model ({CONFIG} or {ADAPTER}) in {folder!r}")
    check_folder(folder)


def training_of(stage: Stage, accumulate: int) -> Training:
    """Return how the model of a stage is trained."""
    config: Mapping[str, Any] = stage.config
    if stage.kind in ("suppress", "tune"):
        return Training(**config["recipe"], accumulate=accumulate)
    common = {"accumulate": accumulate, "precision": config["precision"]}
    if stage.kind == "pretrain":
        return Training(**config["pretrain"], **common)
    names = ("steps", "learning_rate", "warmup")
    return Training(**{name: config["distil"][name] for name in names}, weight_decay=0.0, **common)


def trainings(stage: Stage) -> list[tuple[dict[str, Any], list[int]]]:
    """Return the trainings of a stage of the kind "tune", each with its settings and numbers of steps."""
    config: Mapping[str, Any] = stage.config
    recipe = Training(**config["recipe"])
    values = around({"steps": recipe.steps, "learning_rate": recipe.learning_rate, **config["settings"]})
    combinations = [dict(zip(values, of, strict=True)) for of in itertools.product(*values.values())]
    return together(combinations, recipe.steps, recipe)


def total_steps(stage: Stage) -> int:
    """Return the maximum number of gradient steps of a stage."""
    config: Mapping[str, Any] = stage.config
    if stage.kind == ATTACK:
        own = config["relearn"]["steps"] * len(config["relearn"]["learning_rates"])
        return int(config.get("steps", own))
    if stage.kind in ("given", "filtered", *MEASURES):
        return 0
    if stage.kind == "tune":
        return sum(max(steps) for _, steps in trainings(stage))
    return training_of(stage, 1).steps
