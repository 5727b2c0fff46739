"""Names of plug-ins: what is found, what is imported, and what is said of a name that does not work."""

import subprocess
import sys
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import pytest

from routed_rl.errors import UserError
from routed_rl.options.conform import conform, from_text, takes_text
from routed_rl.own_modules import located, name_of, source_digests
from routed_rl.plugins import PluginName, Registry
from tests.own_code import forget, own_code


class Animal(ABC):
    @abstractmethod
    def sound(self): ...


class Dog(Animal):
    def sound(self):
        return "wuff"


ANIMALS = Registry("animal", Animal, {"dog": Dog}, "test.animals")
CAT = """
from tests.test_plugins import Animal

class Cat(Animal):
    class Kitten(Animal):
        def sound(self): return "mi"
    def sound(self): return "miau"

class Wild(Animal):
    pass

class Fed(Animal):
    def __init__(self, food): pass
    def sound(self): return "m"

class dog(Cat): pass
class Stone: pass
def purr(): pass
"""


@pytest.fixture
def write(tmp_path):
    with own_code(tmp_path) as write:
        write("cats.py", CAT)
        yield write


def install(write, package, points, group="test.animals"):
    """Write what pip writes of a package with entry points."""
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    write(f"{package}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    write(f"{package}-1.0.dist-info/entry_points.txt", f"[{group}]\n{lines}\n")


def test_a_class_in_the_working_directory_is_found(write, tmp_path):
    for given, name, reference in (
        ("cats:Cat", "Cat", "cats:Cat"),
        ("cats.py:Cat", "Cat", "cats:Cat"),
        ("./cats:Cat", "Cat", "cats:Cat"),
        (f"{tmp_path}/cats:Cat", "Cat", "cats:Cat"),
        ("cats:Cat.Kitten", "Kitten", "cats:Cat.Kitten"),
    ):
        found = ANIMALS.find(given, "--animal")
        assert (found.name, found.reference, found.built_in) == (name, reference, False)
        assert found.kind().sound() in ("miau", "mi") and set(found.code()) == {"cats.py"}
    assert ANIMALS.find(found.kind, "animal") == found
    assert sys.path[-1] == str(tmp_path) and sys.path.count(str(tmp_path)) == 1, "last, so it hides no other module"


def test_a_built_in_is_itself_however_it_is_named(write):
    for given in ("dog", Dog, "tests.test_plugins:Dog"):
        found = ANIMALS.find(given, "--animal")
        assert (found.name, found.reference, found.kind, found.code()) == ("dog", "dog", Dog, {})


def test_folders_without_init_and_packages_are_found(write):
    write("plain/cats2.py", CAT)
    write("zoo/__init__.py", "")
    write("zoo/cages/__init__.py", "from .big import Cat")
    write("zoo/cages/big.py", CAT)
    assert set(ANIMALS.find("plain.cats2:Cat", "--animal").code()) == {"plain/cats2.py"}
    code = ANIMALS.find("zoo.cages:Cat", "--animal").code()
    assert set(code) == {"zoo/__init__.py", "zoo/cages/__init__.py", "zoo/cages/big.py"}


MISTAKES = [
    ("dgo", r"--animal must be one of dog, or MODULE:CLASS of your own, got 'dgo'; did you mean 'dog'\?"),
    ("cats.Cat", r"got 'cats.Cat'; did you mean cats:Cat\?"),
    (3, "--animal must be a name, MODULE:CLASS or a class, got 3"),
    ("cats:", "--animal 'cats:' must have the form MODULE:CLASS"),
    (":Cat", "--animal ':Cat' must have the form MODULE:CLASS"),
    ("my-cats:Cat", "--animal 'my-cats:Cat' must have the form MODULE:CLASS"),
    ("cast:Cat", r"--animal 'cast:Cat': there is no module 'cast' in '.*' or .*; did you mean 'cats'\?"),
    ("cats.big:Cat", "--animal 'cats.big:Cat': there is no module 'cats.big'"),
    ("cats:Cta", r"--animal 'cats:Cta': the module cats \(.*cats.py\) has no 'Cta'; did you mean 'Cat'\?"),
    ("cats:purr", "--animal 'cats:purr' is a function, but must be a subclass of tests.test_plugins.Animal"),
    ("cats:Stone", "--animal 'cats:Stone' is the class Stone, but must be a subclass of tests.test_plugins.Animal"),
    ("cats:Wild", "--animal 'cats:Wild' cannot be made without arguments: Can't instantiate abstract class Wild"),
    ("cats:Fed", r"--animal 'cats:Fed' cannot be made without arguments: .*'food'"),
    ("cats:dog", "--animal 'cats:dog' has the name of the built-in animal dog: rename the class"),
    ("no_such.module:Cat", "there is no module 'no_such'"),
    (
        "bad:Cat",
        "--animal 'bad:Cat': the module bad cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
    ),
    ("worse:Cat", "--animal 'worse:Cat': the module worse cannot be imported: SyntaxError: "),
    ("ends:Cat", "--animal 'ends:Cat': the module ends cannot be imported: SystemExit: 2"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_a_mistake_is_one_line_that_quotes_it(given, message, write):
    write("bad.py", "import nowhere")
    write("worse.py", "def f(:\n  pass")
    write("ends.py", "import sys\nsys.exit(2)")
    with pytest.raises(ValueError, match=message) as error:
        ANIMALS.find(given, "--animal")
    assert "\n" not in str(error.value)


def test_a_module_that_another_one_hides_is_not_taken_for_it(write, tmp_path):
    write("other/cats.py", CAT)
    assert ANIMALS.find("cats:Cat", "--animal")
    with pytest.raises(
        ValueError, match=r"Python has a module 'cats' from .* already, which hides the one in .*/other'"
    ):
        ANIMALS.find("other/cats:Cat", "--animal")


def test_entry_points_of_installed_packages_are_found(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    install(write, "zoo", {"cat": "cats:Cat", "lost": "cats:Lost", "dog": "cats:Cat"})
    found = ANIMALS.find("cat", "--animal")
    assert (found.name, found.reference, set(found.code())) == ("cat", "cat", {"cats.py"})
    with pytest.raises(ValueError, match=r"one of dog, cat, lost, or .*got 'cta'; did you mean 'cat'\?"):
        ANIMALS.find("cta", "--animal")
    with pytest.raises(
        ValueError, match=r"--animal lost of the package zoo: 'cats:Lost': the module cats .* has no 'Lost'"
    ):
        ANIMALS.find("lost", "--animal")
    with pytest.warns(UserWarning, match="--animal dog is the built-in animal; that of the package zoo is cats:Cat"):
        assert ANIMALS.find("dog", "--animal").kind is Dog
    install(write, "park", {"cat": "cats:Cat.Kitten"})
    with pytest.raises(ValueError, match=r"--animal 'cat' is in several packages: .*cats:Cat of zoo"):
        ANIMALS.find("cat", "--animal")


def test_nothing_is_imported_that_is_not_named(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write("trap.py", "raise SystemExit('imported')")
    install(write, "trap", {"trap": "trap:Trap"})
    with warnings.catch_warnings(action="error"):
        assert ANIMALS.find("dog", "--animal").kind is Dog
        assert ANIMALS.find("cats:Cat", "--animal").name == "Cat"
        assert located("trap:Trap") == f"{tmp_path}/trap:Trap"
    assert "trap" not in sys.modules


def test_an_edited_file_changes_the_hash_and_no_other_file_does(write, tmp_path):
    write("legs.py", "import json\nfour = 4")
    write("lazy.py", "five = 5")
    write("cats.py", "from legs import four\n" + CAT + "\ndef later():\n    import lazy\n")
    write("data/__init__.py", "")

    def code():
        forget(tmp_path)
        return ANIMALS.find("cats:Cat", "--animal").code()

    before = code()
    assert set(before) == {"cats.py", "legs.py", "lazy.py"}
    write("other.py", "six = 6")
    assert code() == before
    write("lazy.py", "five = 6")
    after = code()
    assert {name for name in before if before[name] != after[name]} == {"lazy.py"}


def test_the_file_that_was_named_counts_also_if_the_class_comes_from_another_one(write):
    write(
        "breeder.py", "from tests.test_plugins import Dog\ndef breed():\n    class Breed(Dog): pass\n    return Breed"
    )
    write("kennel.py", "from breeder import breed\nPoodle = breed()")
    found = ANIMALS.find("kennel:Poodle", "--animal")
    assert found.kind.__module__ == "breeder" and set(found.code()) == {"breeder.py", "kennel.py"}


def test_of_an_installed_package_only_its_own_files_count(write, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    write("site-packages/neighbour.py", "")
    write("site-packages/zoo2/__init__.py", "import neighbour\nfrom zoo2.big import Cat")
    write("site-packages/zoo2/big.py", CAT)
    assert located("zoo2:Cat") == "zoo2:Cat", "without a folder: it is found everywhere"
    assert set(ANIMALS.find("zoo2:Cat", "--animal").code()) == {"zoo2/__init__.py", "zoo2/big.py"}


def test_code_without_a_file_cannot_be_compared():
    names = {"Animal": Animal, "__name__": "nowhere"}
    exec("class Fish(Animal):\n    def sound(self): return ''", names)
    assert source_digests("nowhere") == {}
    with pytest.raises(ValueError, match="'nowhere:Fish' has no source file"):
        ANIMALS.find(names["Fish"], "animal").code()


@dataclass(frozen=True)
class Options:
    animals: tuple[PluginName, ...] = ()


def test_options_take_names_and_classes_and_say_where_they_lie(write, tmp_path):
    cat = ANIMALS.find("cats:Cat", "--animal").kind
    found = conform(Options, {"animals": ["dog", "cats:Cat", cat, "a/b.c:D"]})["animals"]
    assert found == ("dog", f"{tmp_path}/cats:Cat", f"{tmp_path}/cats:Cat", f"{tmp_path}/a/b.c:D")
    assert conform(Options, {"animals": found})["animals"] == found
    assert conform(Options, {"animals": cat})["animals"] == conform(Options, {"animals": "cats:Cat"})["animals"]
    for given, message in (
        ([cat()], "animals must be a name, MODULE:NAME or a class, got <cats.Cat"),
        (
            [type("Bird", (), {"__module__": "__main__"})],
            "animals: Bird is defined in the script or notebook that runs",
        ),
        (3, "animals must be a list, got 3"),
    ):
        with pytest.raises(UserError, match=message):
            conform(Options, {"animals": given})
    with pytest.raises(ValueError, match="is defined in a function, where the study's processes cannot import it"):
        name_of(type("Bird", (), {"__qualname__": "f.<locals>.Bird", "__module__": "cats"}))


def test_another_process_finds_what_was_located(write, tmp_path):
    """Also without the working directory on its path, as the processes of studies are started."""
    write("nature.py", "legs = 4")
    write(
        "beetle.py",
        "import nature\nclass Beetle:\n    def legs(self):\n        import nature\n        return nature.legs",
    )
    code = "import sys; from routed_rl.own_modules import load; print(load(sys.argv[1])().legs())"
    command = [sys.executable, "-P", "-c", code, located("beetle:Beetle")]
    assert subprocess.run(command, cwd="/", capture_output=True, text=True).stdout == "4\n"


def test_values_from_text():
    for hint, text, value in (
        (float, "2", 2.0),
        (int, "2", 2),
        (bool, "False", False),
        (bool, "true", True),
        (str, "None", "None"),
        (str | None, "None", None),
        (float | None, "0.5", 0.5),
        (float | None, "none", None),
        (Literal["a", "b"], "a", "a"),
        (Literal[1, 2], "2", 2),
    ):
        found = from_text(hint, text)
        assert takes_text(hint) and found == value and type(found) is type(value)
    for hint, text, message in ((int, "2.5", "a whole number"), (bool, "1", "True or False"), (float, "x", "a number")):
        with pytest.raises(ValueError, match=message):
            from_text(hint, text)
    assert not takes_text(Dog) and not takes_text(int | str) and not takes_text(tuple[int, ...])
