"""Word problems and their prompts; what a model writes after prompts."""

import json
import re
from collections import Counter

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from routed_rl.lm import (
    Prompt,
    character_tokenizer,
    completion_accuracy,
    generate_word_problems,
    read_prompts,
    word_problem_prompts,
)
from routed_rl.lm.word_problems import _STORIES

COMPUTE = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


def test_every_answer_is_right():
    documents = list(generate_word_problems(4000, 0))
    assert documents == list(generate_word_problems(4000, 0)) != list(generate_word_problems(4000, 1))
    equations, stories = documents[::2], documents[1::2]
    for document in equations:
        a, operation, b, _, answer = document.text.removesuffix(".").split()
        assert COMPUTE[operation](int(a), int(b)) == int(answer)
        assert document.topic == ("addition" if operation in "+-" else "multiplication")
    assert max(Counter(document.text.split()[1] for document in equations).values()) < 600
    for document in stories:
        assert document.text.endswith(".") and "{" not in document.text
        *numbers, answer = map(int, re.findall(r"\d+", document.text))
        a, b = max(numbers), min(numbers)
        right = {"addition": {a + b, a - b}, "multiplication": {a * b, a // max(b, 1)}}
        assert len(numbers) == 2 and answer in right[document.topic], document.text


def test_prompts_are_of_other_stories():
    prompts = word_problem_prompts(25, 0)
    assert len(prompts) == 200 and sum(prompt.forget for prompt in prompts) == 100
    forms = {}
    for texts, name in (
        ([p.text for p in prompts], "asked"),
        ([d.text for d in generate_word_problems(4000, 0)], "seen"),
    ):
        endings = [
            e for s in _STORIES.values() for e in (*s.endings, *s.held_out_endings) if any(e in t for t in texts)
        ]
        forms[name] = set(endings)
    assert forms["asked"] and forms["seen"] and not forms["asked"] & forms["seen"]
    for prompt in prompts:
        assert not prompt.text.endswith(" ") and prompt.answer not in ("", None)
        if prompt.text.endswith("="):
            a, operation, b, _ = prompt.text.split()
            assert COMPUTE[operation](int(a), int(b)) == int(prompt.answer)
            assert prompt.forget == (operation in "*/")


class Parrot(nn.Module):
    """A model that writes a given answer, chosen by the prompt's length; then it ends the text, and writes on."""

    def __init__(self, tokenizer, says):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.tokenizer, self.says = tokenizer, says

    def forward(self, input_ids, use_cache):
        assert not self.training
        length = max(begin for begin in self.says if begin <= input_ids.shape[1])
        said = [
            *self.tokenizer.encode(self.says[length], add_special_tokens=False),
            self.tokenizer.eos_token_id,
            *[9] * 99,
        ]
        likeliest = torch.tensor([said[input_ids.shape[1] - length]] * len(input_ids))
        return CausalLMOutput(logits=nn.functional.one_hot(likeliest, 60)[:, None])


def tokenizer_of(characters):
    tokenizer = character_tokenizer(characters + "#")
    tokenizer.eos_token = "#"
    return tokenizer


@pytest.mark.parametrize(
    ("says", "answer", "right"),
    [
        (" 12 apples", "12", True),
        ("12.0", "12", True),
        (" 120", "12", False),
        (" 13", "12", False),
        ("twelve", "12", False),
        (" Paris, of course", "Paris", True),
        (" paris", "Paris", False),
        ("", "12", False),
    ],
)
def test_what_is_right(says, answer, right):
    tokenizer = tokenizer_of("0123456789abcdefghijklmnopqrstuvwxyzP ,.")
    model = Parrot(tokenizer, {4: says}).train()  # <bos> and three characters
    assert completion_accuracy(model, tokenizer, [Prompt("abc", answer)], new_tokens=20) == right
    assert model.training


def test_prompts_of_all_lengths_are_batched_with_their_own():
    tokenizer = tokenizer_of("0123456789a ")
    model = Parrot(tokenizer, {2: " 1", 12: " 2", 22: " 3"})
    lengths_and_answers = [(21, "3"), (1, "1"), (11, "7"), (1, "9"), (21, "3")]
    prompts = [Prompt("a" * length, answer) for length, answer in lengths_and_answers]
    for batch_size in (1, 2, 64):
        assert completion_accuracy(model, tokenizer, prompts, batch_size=batch_size) == 3 / 5
    with pytest.raises(ValueError, match="there are no prompts"):
        completion_accuracy(model, tokenizer, [])


def test_prompts_of_a_file(tmp_path):
    file = tmp_path / "prompts.jsonl"
    entries = [
        {"prompt": "2 + 2 =", "answer": "4", "forget": False},
        {"prompt": "2 * 3 =", "answer": "6", "forget": True},
    ]
    file.write_text("\n\n".join(map(json.dumps, entries)))
    assert read_prompts(file) == [Prompt("2 + 2 =", "4"), Prompt("2 * 3 =", "6", True)]
    for line in ('{"prompt": "a", "answer": "b"}', '{"prompt": "a", "answer": " ", "forget": true}'):
        file.write_text(json.dumps(entries[0]) + "\n" + line)
        with pytest.raises(
            ValueError, match=r"line 2: expected the texts 'prompt' and 'answer', not blank, and 'forget'"
        ):
            read_prompts(file)
    file.write_text(json.dumps(entries[0]))
    with pytest.raises(ValueError, match='has no forget prompts: add lines with "forget": true'):
        read_prompts(file)
