"""What a reader reads and writes, against one row at a time and against generate() of transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from routed_rl.lm.chat import rendered
from routed_rl.lm.documents import from_row
from routed_rl.unlearning.benchmarks import Example
from routed_rl.unlearning.scores import Reader
from routed_rl.unlearning.scores.memorisation import extraction_strength
from tests.unlearning.scores.small_benchmark import small_benchmark, small_model, small_tokenizer

BENCHMARK = small_benchmark()
PLAIN = small_tokenizer(BENCHMARK)
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def with_chat():
    tokenizer = small_tokenizer(BENCHMARK)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


CHAT = with_chat()
EXAMPLES = [*BENCHMARK.sets["forget"][:4], *BENCHMARK.sets["forget_texts"][:4], Example("", "Ann Ash lives in Oslo.")]


def make(kind, longer=4, **options):
    """A model with sharp predictions, so that nothing is close to a tie, and its tokenizer."""
    tokenizer = CHAT if kind == "chat" else PLAIN
    model = small_model(tokenizer, seed=1)
    model.get_output_embeddings().weight.data *= 40
    return Reader(model, tokenizer, replace(BENCHMARK, longer=longer), **options)


def tokens_of(reader, example, answer=None):
    """All tokens, and the place of the answer's first one."""
    text, answers = (document := rendered(from_row(example.row(answer)), reader.tokenizer)).text, document.answers
    encoded = reader.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    begin = answers[0][0] if answers else 0
    places = [i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > begin]
    chat = reader.tokenizer.chat_template and example.chat and example.prompt
    bos, eos = reader.tokenizer.bos_token_id, reader.tokenizer.eos_token_id
    inner = encoded["input_ids"]
    head = [] if bos is None or inner[0] == bos else [bos]
    return [*head, *inner, *([] if chat or eos is None else [eos])], max(places[0] + len(head), 1)


def generate(model, tokens, count, ends=None):
    """The tokens that transformers writes after these."""
    prompt = torch.tensor([tokens])
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": ends, "pad_token_id": 0}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, len(tokens) :].tolist()


@pytest.mark.parametrize("kind", ["plain", "chat"])
@pytest.mark.parametrize("at_once", [1, 60, 4096])
def test_answers_are_what_the_model_says_of_one_row_at_a_time(kind, at_once):
    """However many tokens are read at once."""
    reader = make(kind, tokens_at_once=at_once)
    for example, found in zip(EXAMPLES, reader.answers(EXAMPLES), strict=True):
        tokens, begin = tokens_of(reader, example)
        assert found.ids.tolist() == tokens[begin:]
        with torch.no_grad():
            log = reader.model(torch.tensor([tokens])).logits[0].log_softmax(-1).double()
        for i, token in enumerate(found.ids, start=begin):
            of = log[i - 1]
            chance = of.exp()
            mean = float((chance * of).sum())
            deviation = float((chance * (of - mean) ** 2).sum()) ** 0.5
            expected = (float(of[token]), float(of.argmax() == token), mean, deviation)
            at = i - begin
            read = (found.log_probability[at], found.likeliest[at], found.mean[at], found.deviation[at])
            np.testing.assert_allclose(read, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["plain", "chat"])
@pytest.mark.parametrize(("at_once", "longer"), [(1, 4), (4096, 4), (4096, 128)])
def test_what_is_written_is_what_transformers_generates(kind, at_once, longer):
    """It is so many tokens longer than the answer at most, and ends where an answer ends, or the model's positions."""
    reader = make(kind, longer, tokens_at_once=at_once)
    texts = reader.written(EXAMPLES)
    assert any(texts)
    for example, written in zip(EXAMPLES, texts, strict=True):
        tokens, begin = tokens_of(reader, example)
        ends = {reader.tokenizer.eos_token_id}
        if kind == "chat" and example.chat and example.prompt:
            ends.add(reader.tokenizer.convert_tokens_to_ids("<|end|>"))
        count = min(len(tokens) - begin + longer, 128, reader.model.config.max_position_embeddings - begin)
        generated = generate(reader.model, tokens[:begin], count, sorted(ends))
        assert written == reader.tokenizer.decode(generated, skip_special_tokens=True).strip()


def test_a_chat_answer_ends_with_the_token_that_ends_a_turn():
    reader = make("chat")
    (found,) = reader.answers(EXAMPLES[:1])
    assert found.ids[-1] == CHAT.convert_tokens_to_ids("<|end|>")
    assert reader.text(found).tolist() == [True] * (len(found.ids) - 1) + [False]


def test_writing_stops_where_a_chat_answer_ends():
    """A model that always ends its turn writes nothing, though this is not the end of a text."""
    reader = make("chat")
    end = CHAT.convert_tokens_to_ids("<|end|>")
    reader.model.get_output_embeddings().register_forward_hook(
        lambda module, args, logits: torch.nn.functional.one_hot(torch.tensor(end), logits.shape[-1]).expand_as(logits)
    )
    assert end != CHAT.eos_token_id and reader.written(EXAMPLES[:2]) == ["", ""]


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_keys_mark_the_words_that_state_the_fact(kind):
    """Without a key, or with one that is not in the answer, all of the answer is marked, but not its end."""
    reader = make(kind)
    question = EXAMPLES[0]
    cases = {question: question.key, replace(question, key=""): question.answer}
    cases |= {
        replace(question, key="Paris"): question.answer,
        replace(question, key=question.key.upper()): question.key,
    }
    for document, key in zip(reader.keys(list(cases)), cases.values(), strict=True):
        assert reader.tokenizer.decode(document.tokens[document.scored]).strip() == key


def test_an_attacker_changes_what_is_read_and_written():
    changed = [replace(example, prompt=f"Ann Ash. {example.prompt}") for example in EXAMPLES[:4]]
    attacked = make("plain", change=lambda example: replace(example, prompt=f"Ann Ash. {example.prompt}"))
    assert attacked.written(EXAMPLES[:4]) == make("plain").written(changed)
    for one, other in zip(attacked.answers(EXAMPLES[:4]), make("plain").answers(changed), strict=True):
        np.testing.assert_allclose(one.log_probability, other.log_probability, rtol=0, atol=1e-4)


def test_answers_end_before_a_stop_and_continued_texts_do_not():
    free = make("plain")
    written = free.written(EXAMPLES)
    stops = (written[0][2:4], written[4][2:4])
    stopped = Reader(free.model, PLAIN, replace(free.benchmark, stops=stops)).written(EXAMPLES)
    for example, before, after in zip(EXAMPLES, written, stopped, strict=True):
        ends = [before.index(stop) for stop in stops if stop in before]
        assert after == (before if example in EXAMPLES[4:8] or not ends else before[: min(ends)].strip())
    assert stopped[0] == written[0][: written[0].index(stops[0])].strip() and stopped[4] == written[4]


def test_extraction_strength_is_what_greedy_decoding_gives_after_a_prefix():
    """The shortest prefix of the true answer after which the model itself writes the rest, token by token."""
    reader = make("plain")
    model, (tokens, begin) = reader.model, tokens_of(reader, EXAMPLES[0])
    learned = [model(torch.tensor([tokens[:begin]])).logits[0, -1].argmax().item()]
    for _ in range(5):
        learned.append(model(torch.tensor([[*tokens[:begin], *learned]])).logits[0, -1].argmax().item())
    for wrong in (None, 0, 2, 5):  # an answer of the model's own, but for one token
        answer = [token if i != wrong else (token + 1) % 100 for i, token in enumerate(learned)]
        row = torch.tensor([[*tokens[:begin], *answer]])
        likeliest = (model(row).logits[0, begin - 1 : -1].argmax(-1) == row[0, begin:]).numpy()
        shortest = next(
            k
            for k in range(len(answer) + 1)
            if k == len(answer) or generate(model, [*tokens[:begin], *answer[:k]], len(answer) - k) == answer[k:]
        )
        assert extraction_strength(likeliest) == pytest.approx(1 - shortest / len(answer))


def test_a_diverged_model_writes_nothing():
    reader = make("plain")
    reader.model.get_output_embeddings().weight.data.fill_(np.nan)
    assert reader.written(EXAMPLES[:2]) == [None, None]
    assert np.isnan(reader.answers(EXAMPLES[:1])[0].log_probability).all()


def test_an_answer_beyond_what_the_model_can_read_is_refused():
    with pytest.raises(ValueError, match=r"no token of the answer to 'x+' can be scored: .* beyond the 64 tokens"):
        make("plain").answers([Example("x" * 300, "y")])


def test_the_model_stays_in_its_mode():
    reader = make("plain")
    reader.model.train()
    reader.answers(EXAMPLES[:1]), reader.written(EXAMPLES[:1])
    assert reader.model.training
