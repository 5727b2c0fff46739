"""Tiny stand-ins of TOFU, MUSE and WMDP in their own schemas, as folders or as a hub that is replaced."""

import json
import sys
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet


def asked(i, **more):
    return {"question": f"Q{i}?", "answer": f"A{i}.", **more}


def other(i, answers=("B.", "C.", "D.")):
    return asked(i, perturbed_answer=list(answers))


def full(i):
    """A row of a ``_perturbed`` configuration of TOFU."""
    return {**other(i), "paraphrased_answer": f"It is A{i}.", "paraphrased_question": f"P{i}?"}


def texts(name, count=2):
    return [{"text": f"{name} text number {i} with a good many words"} for i in range(count)]


def choice(i, **more):
    return {"question": f"Q{i}?", "choices": [f"w{i}", f"x{i}", f"y{i}", f"z{i}"], "answer": i % 4, **more}


TOFU = {("locuslab/TOFU", f"forget{percent:02}", "train"): [asked(i) for i in range(percent)] for percent in (1, 5, 10)}
TOFU |= {(repository, f"{name}_perturbed", split): [full(0)] for repository, name, split in TOFU}
TOFU |= {("locuslab/TOFU", f"retain{percent}", "train"): [asked(i) for i in range(10, 110)] for percent in (99, 95, 90)}
TOFU |= {("locuslab/TOFU", f"holdout{percent:02}", "train"): [asked(200)] for percent in (1, 5, 10)}
TOFU |= {
    ("locuslab/TOFU", "retain_perturbed", "train"): [full(10), full(11)],
    ("locuslab/TOFU", "real_authors_perturbed", "train"): [other(300)],
    ("locuslab/TOFU", "world_facts_perturbed", "train"): [other(400, ("B.", "B.", "A400."))],
}
MUSE = {
    ("muse-bench/MUSE-News", "raw", "forget"): texts("forget"),
    ("muse-bench/MUSE-News", "raw", "retain1"): texts("retain"),
    ("muse-bench/MUSE-News", "scal", "forget_2"): texts("forget", 4),
    ("muse-bench/MUSE-News", "sust", "forget_2"): texts("second"),
    ("muse-bench/MUSE-News", "knowmem", "forget_qa"): [asked(0)],
    ("muse-bench/MUSE-News", "knowmem", "retain_qa"): [asked(1)],
    ("muse-bench/MUSE-News", "knowmem", "forget_qa_icl"): [asked(2), asked(3)],
    ("muse-bench/MUSE-News", "knowmem", "retain_qa_icl"): [asked(4)],
    ("muse-bench/MUSE-News", "verbmem", "forget"): [{"prompt": "forget text number", "gt": " 0 with a good"}],
    ("muse-bench/MUSE-News", "privleak", "forget"): texts("member"),
    ("muse-bench/MUSE-News", "privleak", "retain"): texts("kept"),
    ("muse-bench/MUSE-News", "privleak", "holdout"): texts("other"),
}
MUSE |= {("muse-bench/MUSE-Books", *where): rows for (_, *where), rows in MUSE.items()}
WMDP = {
    **{("cais/wmdp", f"wmdp-{domain}", "test"): [choice(i) for i in range(5)] for domain in ("bio", "cyber", "chem")},
    ("cais/wmdp-corpora", "bio-retain-corpus", "train"): texts("bio kept"),
    ("cais/wmdp-corpora", "cyber-forget-corpus", "train"): texts("cyber"),
    ("cais/wmdp-corpora", "cyber-retain-corpus", "train"): texts("cyber kept"),
    ("cais/wmdp-bio-forget-corpus", "default", "train"): [*texts("bio"), {"text": " "}],
    ("cais/mmlu", "all", "test"): [choice(i, subject="high_school_biology") for i in range(10, 14)],
    ("cais/mmlu", "all", "validation"): [choice(20, subject="astronomy")],
}


def put(folder, files):
    """Write files as they are downloaded: Parquet for a configuration with splits, JSON lines for TOFU."""
    for (repository, configuration, split), rows in files.items():
        if repository == "locuslab/TOFU":
            (folder / f"{configuration}.json").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            continue
        name = "bio-forget-corpus" if configuration == "default" else configuration
        (folder / name).mkdir(exist_ok=True)
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, folder / name / f"{split}-00000-of-00001.parquet")


def hub(monkeypatch, files):
    """Replace the hub by rows, and return a list that collects what is asked for."""
    read = []

    def load_dataset(repository, configuration, *, split, streaming):
        assert streaming
        read.append((repository, configuration, split))
        if (repository, configuration, split) not in files:
            raise FileNotFoundError("no such dataset\nat all")
        return iter(files[repository, configuration, split])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return read
