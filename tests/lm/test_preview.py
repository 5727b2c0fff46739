"""What a preview counts and shows, compared with a corpus counted by hand."""

from routed_rl.experiments.language.corpus import coloured, show
from routed_rl.lm import build_corpus, find_words, preview
from routed_rl.lm.documents import Document, from_row
from routed_rl.lm.stories import stories_tokenizer
from tests.lm.test_examples import tokenizer

TEXTS = ["the tree and a tree", "the bank", "the tree [bold]near[/] ship", "a day", "a [link=x] night"]


def test_counts_and_matches_are_those_of_the_documents(tmp_path):
    of, finder = tokenizer(), find_words(["tree", "ship", "oak"])
    corpus = build_corpus(tmp_path / "c", map(Document, TEXTS), of, finder, validation=None)
    found = preview(corpus, of, finder)
    assert found.matches == {"tree": 2, "ship": 1} and found.overlap == 0
    counts = found.counts.set_index(["split", "set"])
    assert counts.documents.tolist() == [2, 3, 0, 0]
    lengths = {text: len(of.encode(text)) + 2 for text in TEXTS}
    assert counts.tokens.tolist()[:2] == [sum(lengths[TEXTS[i]] for i in of) for of in ((0, 2), (1, 3, 4))]
    assert (counts.scored == counts.tokens - counts.documents).all()
    assert counts.longest.tolist()[0] == max(lengths[TEXTS[0]], lengths[TEXTS[2]])
    assert {example.kind for example in found.examples} == {"forget", "retain"} and len(found.examples) == 5
    for example in found.examples:
        assert "".join(example.tokens) == f"<bos>{TEXTS[example.number]}<eos>"
        assert example.scored == (False, *[True] * (len(example.tokens) - 1))
        assert set(example.forget[1:-1]) == {example.kind == "forget"} and not example.forget[-1]


def test_only_answers_are_marked_as_scored(tmp_path):
    of = tokenizer()
    documents = [from_row({"question": "Who?", "answer": "Me."}), Document("tree")]
    corpus = build_corpus(tmp_path / "c", documents, of, find_words(["tree"]), validation=None)
    (asked,) = [example for example in preview(corpus, of).examples if example.kind == "retain"]
    scored = "".join(token for token, counts in zip(asked.tokens, asked.scored, strict=True) if counts)
    assert scored.strip() == "Me.<eos>"
    styles = [str(span.style) for span in coloured(asked).spans]
    assert [style == "bold" for style in styles] == list(asked.scored)


def test_words_of_a_tokenizer_without_spaces_are_apart(tmp_path):
    of, documents = stories_tokenizer(), [Document("the tree"), Document("the ship")]
    corpus = build_corpus(tmp_path / "c", documents, of, find_words(["tree"]), validation=None)
    texts = {"".join(example.tokens) for example in preview(corpus, of).examples}
    assert texts == {"<bos> the tree <eos>", "<bos> the ship <eos>"}


def test_a_user_s_text_is_never_markup(tmp_path, capsys):
    of, finder = tokenizer(), find_words(["tree"])
    corpus = build_corpus(tmp_path / "c", map(Document, TEXTS), of, finder, validation=None)
    show(preview(corpus, of, finder))
    shown = capsys.readouterr().out
    assert "[bold]near[/] ship" in shown and "[link=x] night" in shown and "'tree' 2" in shown
    assert "train, forget" in shown and "train, retain" in shown
