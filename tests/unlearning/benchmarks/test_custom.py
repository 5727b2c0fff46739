"""A benchmark of the user's own: the schema, its defaults, and errors that name the file, the line and the fields."""

import json
import re
from pathlib import Path

import pytest

from routed_rl.errors import UserError
from routed_rl.lm.documents import from_row
from routed_rl.unlearning.benchmarks import Custom, Example
from routed_rl.unlearning.benchmarks.custom import KNOWN

FORGET = {
    "set": "forget",
    "question": "Where was Ada born?",
    "answer": "Ada was born in Riga.",
    "paraphrases": ["Riga is where Ada was born."],
    "perturbed": ["Ada was born in Oslo.", "Ada was born in Ghent."],
    "choices": ["Ada was born in Riga.", "Ada was born in Perth."],
    "key": "Riga",
}
RETAIN = {"set": "retain", "question": "Who is Bo?", "answer": "Bo is a baker."}
ROWS = (
    FORGET,
    RETAIN,
    {"set": "forget", "prompt": "Ada grew up", "completion": " in Riga by the sea."},
    {"set": "facts", "question": "What is the capital of Peru?", "answer": "Lima"},
    {"set": "holdout", "text": "Cy lives in Rome."},
)

GUIDE = (Path(__file__).parents[3] / "docs" / "how-to" / "use_your_own_benchmark.md").read_text()


def write(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def test_a_file_has_examples_and_documents(tmp_path):
    benchmark = Custom().load(write(tmp_path / "mine.jsonl", *ROWS))
    assert list(benchmark.sets) == ["forget", "retain", "forget_texts", "facts", "holdout_texts"]
    assert benchmark.sets["forget"] == (
        Example(
            FORGET["question"],
            FORGET["answer"],
            tuple(FORGET["paraphrases"]),
            tuple(FORGET["perturbed"]),
            tuple(FORGET["choices"]),
            "Riga",
        ),
    )
    assert benchmark.sets["forget_texts"] == (Example("Ada grew up", " in Riga by the sea.", chat=False),)
    assert benchmark.sets["holdout_texts"] == (Example("", "Cy lives in Rome.", chat=False),)
    assert [from_row(row).text for row in benchmark.forget] == [
        "Where was Ada born? Ada was born in Riga.",
        "Ada grew up in Riga by the sea.",
    ]
    assert benchmark.retain == [{"question": "Who is Bo?", "answer": "Bo is a baker."}]
    assert benchmark.kept == ["retain", "facts"]


def test_a_folder_may_have_its_own_documents(tmp_path):
    write(tmp_path / "examples.jsonl", *ROWS)
    write(tmp_path / "forget.jsonl", {"text": "A page about Ada."}, {"question": "Ada?", "answer": "Yes."})
    benchmark = Custom().load(str(tmp_path))
    assert benchmark.forget == [{"text": "A page about Ada."}, {"question": "Ada?", "answer": "Yes."}]
    assert len(benchmark.retain) == 1
    write(tmp_path / "retain.jsonl", {"text": "Another page."})
    assert Custom().load(str(tmp_path)).retain == [{"text": "Another page."}]


def test_documents_may_be_chats(tmp_path):
    """Each has its own text, so none of them is taken for another one."""
    write(tmp_path / "examples.jsonl", FORGET, RETAIN)
    for kind in ("forget", "retain"):
        chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": f"I {kind}."}]
        write(tmp_path / f"{kind}.jsonl", {"messages": chat})
    benchmark = Custom().load(str(tmp_path))
    assert list(Custom.documents(benchmark))[:2] == ["Hello I forget.", "Hello I retain."]


def test_the_main_score_depends_on_choices(tmp_path):
    def main(*rows):
        benchmark = Custom().load(write(tmp_path / "a.jsonl", *rows))
        return benchmark.main, benchmark.chance

    assert main(FORGET, RETAIN) == ("multiple-choice", 0.5)
    without = {**RETAIN, "set": "forget", "answer": "Bo sings."}
    assert main(FORGET, RETAIN, without) == ("knowledge", 0.0)
    assert main(RETAIN, without) == ("extraction-strength", 0.0), "no model writes whole answers word by word"
    assert main(RETAIN, {"set": "forget", "text": "Ada lives in Riga."}) == ("extraction-strength", 0.0)


def test_the_example_of_the_guide_loads(tmp_path, monkeypatch, capsys):
    ((rows, code),) = re.findall(r"```json\n(.*?)```.*?```python\n(.*?)```", GUIDE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-benchmark.jsonl").write_text(rows)
    exec(compile(code, "example", "exec"), names := {})
    sizes = {name: len(of) for name, of in names["benchmark"].sets.items()}
    assert sizes == {"forget": 1, "forget_texts": 1, "retain": 1, "holdout": 1, "world_facts": 1}
    assert capsys.readouterr().out.splitlines()[-1] == "knowledge"


def test_the_guide_names_all_fields():
    assert all(f"`{name}`" in GUIDE for name in KNOWN)


PLACE = "a.jsonl', line 2: the row "
BAD = [
    ({"question": "Q?", "answer": "A."}, PLACE + "needs a text in the field 'set'; it has 'question' (str)"),
    ({**RETAIN, "set": 3}, PLACE + "needs a text in the field 'set'; it has 'set' (int), 'question' (str)"),
    ({"set": "retain", "question": "Q?"}, PLACE + "needs a text in the field 'answer'; it has 'set' (str), 'question'"),
    ({**RETAIN, "answer": " "}, PLACE + "has a blank text in the field 'answer'"),
    ({"set": "retain"}, PLACE + "needs 'question' and 'answer', or 'prompt' and 'completion', or 'text'; it has 'set'"),
    ({**RETAIN, "text": "Both."}, PLACE + "needs 'question' and 'answer', or 'prompt' and 'completion', or 'text'"),
    ({**RETAIN, "perturb": ["B."]}, PLACE + "has the unknown field 'perturb'; did you mean 'perturbed'?"),
    ({**RETAIN, "perturbed": "Bo"} | {"perturbed": [3]}, PLACE + "needs a list of texts in the field 'perturbed'"),
    ({**RETAIN, "perturbed": ["B.", "B."]}, PLACE + "has a text twice in the field 'perturbed'"),
    ({**RETAIN, "perturbed": ["Bo is a baker."]}, PLACE + "has its right answer among the 'perturbed' ones"),
    ({**RETAIN, "choices": ["A.", "Bo is a baker."]}, PLACE + "needs at least two 'choices', the right answer first"),
    ({**RETAIN, "key": "cook"}, PLACE + "has the key 'cook', which is not in its answer 'Bo is a baker.'"),
    ("{", "a.jsonl', line 2: not JSON"),
    ("3", "a.jsonl', line 2: expected a JSON object on each line, got '3'"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_wrong_row_is_named_in_one_line(row, message, tmp_path):
    refused(write(tmp_path / "a.jsonl", FORGET, row), message)


def test_wrong_files_are_named_in_one_line(tmp_path):
    refused(None, "data: name a .jsonl file, or a folder with examples.jsonl")
    refused(str(tmp_path / "none.jsonl"), "there is no file")
    (tmp_path / "notes.txt").write_text("Ada")
    refused(str(tmp_path / "notes.txt"), "must be a .jsonl file, or a folder with examples.jsonl")
    refused(str(tmp_path), "examples.jsonl'; the folder has notes.txt")
    file = write(tmp_path / "a.jsonl")
    refused(file, "has no examples")
    refused(write(tmp_path / "a.jsonl", FORGET), "the benchmark has no retain documents")
    refused(
        write(tmp_path / "a.jsonl", FORGET, {**FORGET, "set": "retain"}), "1 of 1 forget documents are in the retain"
    )
    held = {"set": "holdout", "question": RETAIN["question"], "answer": RETAIN["answer"]}
    refused(write(tmp_path / "a.jsonl", FORGET, RETAIN, held), "1 of 1 holdout examples are retain documents")
    write(tmp_path / "examples.jsonl", FORGET, RETAIN)
    write(tmp_path / "retain.jsonl", {"body": "Bo"})
    refused(str(tmp_path), "retain.jsonl', line 1: a row needs texts in a field 'text'")
    write(tmp_path / "retain.jsonl", {"text": " "})
    refused(str(tmp_path), "retain.jsonl', line 1: the document has no text")
    with pytest.raises(UserError, match="split='forget10': a benchmark of your own has no splits"):
        Custom().load(file, "forget10")


def refused(data, message):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        Custom().load(data)
    assert "\n" not in str(raised.value)
