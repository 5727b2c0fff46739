"""What saving does with functions, classes and files of the user's own, and what loading refuses."""

import contextlib
import io
import sys
import tempfile
import types
import warnings
import zipfile
from functools import partial

import pytest
import torch
from stable_baselines3.common.torch_layers import FlattenExtractor

from routed_rl.rl import RoutedActorCriticPolicy, RoutedPPO
from routed_rl.rl.encoding import SCHEDULES, decode, encode
from routed_rl.rl.saving import COUNTERS, constructor_meta
from routed_rl.runs import CheckpointError
from routed_rl.runs.packed import write_anywhere

from .test_arguments import make, trained
from .worlds import fingerprint, refused


def learned(model):
    """The bytes of everything but the environment's state."""
    return {name: data for name, data in fingerprint(model).items() if not name.startswith(("env.", "last_obs"))}


class Renamed:
    def __init__(self, start):
        self.begin = start

    def __call__(self, left):
        return self.begin * left


class Doubled:
    def __init__(self, start):
        self.start = 2 * start

    def __call__(self, left):
        return self.start * left


def test_a_schedule_that_loading_could_not_build_again_is_refused(monkeypatch):
    assert make(ent_coef=Renamed(0.1)).ent_coef(0.5) == 0.05  # its values are saved
    for kind, attribute in ((Renamed, "begin"), (Doubled, "start")):
        monkeypatch.setitem(SCHEDULES, kind.__name__, kind)
        refused(lambda kind=kind: make(ent_coef=kind(0.1)), "ent_coef", f"its attributes, which are {attribute}")


def decaying(left):
    return 0.3 * left**2 + 0.01


@pytest.mark.parametrize("name", ["learning_rate", "ent_coef", "clip_range", "clip_range_vf"])
@pytest.mark.parametrize("function", [decaying, lambda left: 0.3 * left, partial(pow, 0.3)])
def test_of_a_function_as_a_schedule_values_are_saved(name, function, tmp_path):
    model = make(**{name: function})
    model.learn(128)
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match=f"as {name}.* give it again, as in RoutedPPO.load.*{name}=") as warned:
        loaded = RoutedPPO.load(tmp_path / "model", device="cpu")
    assert (function is decaying) == (f"decaying as {name}" in str(warned[0].message))
    for step in range(1001):
        assert getattr(loaded, name)(step / 1000) == pytest.approx(function(step / 1000), abs=1e-12)
    for progress in (0.31415, 0.0005, 1.7, -0.3):
        known = function(min(max(progress, 0.0), 1.0))
        assert getattr(loaded, name)(progress) == pytest.approx(known, abs=1e-6)
    loaded.save(tmp_path / "again")
    with pytest.warns(UserWarning, match=name):
        again = RoutedPPO.load(tmp_path / "again", device="cpu")
    assert getattr(again, name)(0.31415) == getattr(loaded, name)(0.31415)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in ({name: function}, {"custom_objects": {name: function}}):
            loaded = RoutedPPO.load(tmp_path / "model", device="cpu", **given)
            assert getattr(loaded, name)(0.31415) == function(0.31415) and learned(loaded) == learned(model)
        model.save(tmp_path / "without", exclude=[name])
        RoutedPPO.load(tmp_path / "without", device="cpu")


def test_all_functions_are_named_at_once(tmp_path):
    make(learning_rate=decaying, clip_range=decaying).save(tmp_path / "model")
    with pytest.warns(UserWarning, match=r"decaying as clip_range, decaying as learning_rate.*clip_range=…, learn"):
        RoutedPPO.load(tmp_path / "model", device="cpu")


def test_a_function_that_gives_no_number_on_the_way_is_refused():
    refused(lambda: make(learning_rate=lambda left: "x" if left == 0.5 else left), "learning_rate", "could not convert")
    refused(lambda: make(ent_coef=lambda left: float("nan") if left == 0.25 else left), "ent_coef", "progress 0.25")


class Imported(RoutedActorCriticPolicy):
    pass


class OwnExtractor(FlattenExtractor):
    pass


class Outside:
    class Nested(OwnExtractor):
        pass


class OtherModule(torch.nn.ReLU):
    def __init__(self, *args, **kwargs):
        raise AssertionError("loading must not make this")


CRAFTED = (
    *("subprocess:Popen", "os:system", "builtins:eval", "builtins:dict", "torch:load", f"{__name__}:decaying"),
    *("torch.nn:Linear", f"{__name__}:OtherModule", f"{__name__}:Nowhere", f"{__name__}:", ":", "", "nowhere:A"),
)
"""Names of classes and functions that a checkpoint must not reach."""


def test_classes_of_ones_own_are_saved_by_module_and_name(tmp_path, monkeypatch):
    model = make(policy=Imported, policy_kwargs={"features_extractor_class": OwnExtractor})
    model.save(tmp_path / "model.zip")
    loaded = RoutedPPO.load(tmp_path / "model.zip", device="cpu")
    assert type(loaded.policy) is Imported and type(loaded.policy.features_extractor) is OwnExtractor
    assert decode(encode("x", Outside.Nested)) is Outside.Nested
    monkeypatch.delitem(sys.modules, __name__)
    with pytest.raises(CheckpointError, match="which is not known here: before you load it, import your class"):
        RoutedPPO.load(tmp_path / "model.zip", device="cpu")
    assert __name__ not in sys.modules


@pytest.mark.parametrize("kind", ["class", "schedule"])
@pytest.mark.parametrize("place", CRAFTED)
def test_a_crafted_checkpoint_reaches_no_other_code(kind, place):
    for crafted in ({kind: place}, {"nested": [{kind: place, "in_features": 3, "out_features": 3}]}):
        with pytest.raises(CheckpointError, match=f"the checkpoint names the {kind} '{place}', which is not known"):
            decode(crafted)


def test_looking_up_a_class_runs_no_code_of_its_module(monkeypatch):
    class Lazy(types.ModuleType):
        def __getattr__(self, name):
            raise AssertionError(name)

    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    with pytest.raises(CheckpointError, match="the class 'lazy:Model', which is not known"):
        decode({"class": "lazy:Model"})


@pytest.mark.parametrize("values", [[], [1.0], ["a", "b"], [True, False], "ab", None])
def test_a_crafted_table_is_refused(values, tmp_path):
    model = make(learning_rate=decaying)
    meta = constructor_meta(model) | {"counters": dict.fromkeys(COUNTERS, 0), "steering": {}}
    meta["arguments"]["learning_rate"]["values"] = values
    write_anywhere(tmp_path / "model", {}, meta)
    with pytest.raises(CheckpointError, match="does not describe a RoutedPPO"):
        RoutedPPO.load(tmp_path / "model", device="cpu")


def test_one_file_holds_the_checkpoint_of_the_directory(tmp_path):
    model = trained()
    model.save(tmp_path / "model")
    model.save(tmp_path / "deep" / "model.zip")
    with (tmp_path / "opened").open("wb") as file:
        model.save(file)
        assert not file.closed
    packed = (tmp_path / "opened").read_bytes()
    assert packed == (tmp_path / "deep" / "model.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "opened") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "unpacked")
    places = ("opened", "unpacked", "model.zip", "deep/model.zip", "deep/model")
    for source in (io.BytesIO(packed), *(tmp_path / place for place in places)):
        assert learned(RoutedPPO.load(source, device="cpu")) == learned(model)
    for place in range(0, len(packed), len(packed) // 97):
        with pytest.raises(CheckpointError, match="cannot be used"):
            RoutedPPO.load(io.BytesIO(packed[:place]), device="cpu")
    for kept, other in (("meta.json", b"{}"), ("meta.json", None), ("evil", b"")):
        edited = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(packed)) as source, zipfile.ZipFile(edited, "w") as target:
            files = {each: source.read(each) for each in source.namelist()} | {kept: other}
            for each, data in files.items():
                if data is not None:
                    target.writestr(each, data)
        refused(lambda edited=edited: RoutedPPO.load(edited), "BytesIO", "cannot be used")
    header = packed.index(b"PK\x01\x02")
    for place in range(header, header + 46):  # of the first file in the archive's list
        for bit in (1, 0x20, 0x40, 0x80):
            damaged = io.BytesIO(packed[:place] + bytes([packed[place] ^ bit]) + packed[place + 1 :])
            with contextlib.suppress(CheckpointError):
                assert learned(RoutedPPO.load(damaged, device="cpu")) == learned(model)
    with zipfile.ZipFile(io.BytesIO(packed)) as source, zipfile.ZipFile(tmp_path / "small.zip", "w", 8) as target:
        for each in source.namelist():
            target.writestr(each, source.read(each))
    refused(lambda: RoutedPPO.load(tmp_path / "small.zip"), "small.zip", "it is compressed")
    for wrong in (io.StringIO(), (tmp_path / "text").open("w"), (tmp_path / "opened").open()):
        refused(lambda wrong=wrong: model.save(wrong), "open for bytes")
        refused(lambda wrong=wrong: RoutedPPO.load(wrong), "open for bytes")
        wrong.close()
        refused(lambda wrong=wrong: model.save(wrong), "open for bytes")
    with (tmp_path / "opened").open("rb") as file:
        refused(lambda: model.save(file), "open for bytes, as by open(…, 'wb')")
    with tempfile.NamedTemporaryFile() as file:
        model.save(file)
        file.seek(0)
        assert learned(RoutedPPO.load(file, device="cpu")) == learned(model)


@pytest.mark.parametrize("name", ["model.zip", "model.pkl"])
def test_a_file_that_is_no_checkpoint_is_not_overwritten(name, tmp_path):
    model = make()
    saved = model if name == "model.zip" else model.policy
    saved.save(tmp_path / name)
    saved.save(tmp_path / name)
    (tmp_path / name).write_bytes(b"PK mine")
    refused(lambda: saved.save(tmp_path / name), name, "is not overwritten: choose another path")
    assert (tmp_path / name).read_bytes() == b"PK mine" and [*tmp_path.iterdir()] == [tmp_path / name]
    refused(lambda: type(saved).load(tmp_path / name), name, "wasn't a zip-file")


def test_a_directory_stays_a_directory_and_an_empty_file_is_replaced(tmp_path):
    model = make()
    model.save(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "m.pt")
    (tmp_path / "new.zip").touch()
    for name in ("m.pt", "new.zip"):
        model.save(tmp_path / name)
        assert (tmp_path / name).is_dir() == (name == "m.pt")
        assert learned(RoutedPPO.load(tmp_path / name, device="cpu")) == learned(model)
    model.save(tmp_path / "LOUD.ZIP")
    assert (tmp_path / "LOUD.ZIP").is_file()


def test_what_a_killed_writer_left_comes_before_a_file_of_the_same_name(tmp_path):
    first, second = make(seed=1), make(seed=2)
    first.save(tmp_path / "m")
    second.save(tmp_path / "m.zip")
    assert RoutedPPO.load(tmp_path / "m", device="cpu").seed == 1
    (tmp_path / "m").rename(tmp_path / ".m.previous")
    assert RoutedPPO.load(tmp_path / "m", device="cpu").seed == 1
    (tmp_path / "m.zip").unlink()
    assert RoutedPPO.load(tmp_path / "m.zip", device="cpu").seed == 1


class OwnStep(torch.optim.SGD):
    def step(self):
        return super().step()


def test_an_optimizer_of_ones_own_may_have_a_step_without_arguments(tmp_path):
    make(policy_kwargs={"optimizer_class": OwnStep}).learn(64)
    refused(lambda: make(policy_kwargs={"optimizer_class": "Adam"}), "optimizer_class must be a class", "'Adam'")
