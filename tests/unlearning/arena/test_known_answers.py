"""What each attack of the arena does, against answers that are known."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from routed_rl.errors import UserError
from routed_rl.unlearning.arena.attacks import (
    EmbeddingNoise,
    FewExamples,
    FewShot,
    FineTuning,
    HeldOutFacts,
    Interpolation,
    Prefix,
    Pruning,
    Quantisation,
    RetainOnly,
    Suffix,
)
from routed_rl.unlearning.arena.attacks.fine_tuning import SHARES
from routed_rl.unlearning.arena.attacks.halves import halves
from routed_rl.unlearning.arena.attacks.suffix_loss import SuffixLoss
from routed_rl.unlearning.benchmarks.benchmark import FORGET, HOLDOUT, RETAIN, Example
from routed_rl.unlearning.scores import Reader
from tests.lm.test_examples import tokenizer as byte_tokenizer
from tests.unlearning.arena.small_arena import Seen, small_benchmark, small_model, small_tokenizer, small_victim


def seen(attack, setting, victim=None):
    look = Seen()
    attack.attempt(setting, victim or small_victim(), look)
    return look


def matrices(weights):
    return {name: weight for name, weight in weights.items() if weight.ndim >= 2}


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_take_few_values(bits):
    (weights,) = seen(Quantisation(), bits).models
    assert max(len(row.unique()) for weight in matrices(weights).values() for row in weight) <= 2**bits - 1


@pytest.mark.parametrize("share", Pruning().shares)
def test_pruning_sets_exactly_the_share_of_the_smallest_weights_to_0(share):
    before = dict(small_model().named_parameters())
    (weights,) = seen(Pruning(), share).models
    for name, weight in weights.items():
        removed = weight == 0
        if weight.ndim < 2:
            assert torch.equal(weight, before[name])
            continue
        assert int(removed.sum()) == round(share * weight.numel())
        assert before[name][removed].abs().max() <= before[name][~removed].abs().min()
        assert torch.equal(weight[~removed], before[name][~removed])


def test_interpolation_goes_from_the_unlearned_model_to_the_original():
    unlearned, original = (dict(small_model(seed).named_parameters()) for seed in (0, 1))
    for share, expected in ((0.0, unlearned), (1.0, original)):
        (weights,) = seen(Interpolation(), share).models
        assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    (weights,) = seen(Interpolation(), 0.25).models
    for name, weight in weights.items():
        torch.testing.assert_close(weight, 0.75 * unlearned[name] + 0.25 * original[name])


@pytest.mark.parametrize("source", [RETAIN, FORGET])
def test_few_shot_changes_the_prompt_only_and_never_shows_the_questions_own_group(source):
    look = seen(FewShot(count=2), source)
    assert all(torch.equal(weight, dict(small_model().named_parameters())[n]) for n, weight in look.models[0].items())
    pool = small_benchmark().examples(source)
    for example in small_benchmark().examples(FORGET):
        changed = look.changes[0](example)
        assert dataclasses.replace(changed, prompt=example.prompt) == example
        *shots, last = changed.prompt.split("\n")
        assert last == example.prompt and len(shots) == 2
        assert all(any(shot == f"{e.prompt} {e.answer}" for e in pool if e.group != example.group) for shot in shots)


def test_few_shot_shows_as_many_questions_as_there_are_positions_for():
    counts = []
    pairs = [(e, of) for e in small_benchmark().examples(FORGET) for of in (e.answer, *e.paraphrases, *e.perturbed)]
    longest = max(small_victim().reader.lengths(*zip(*pairs, strict=True)))
    for most in (4 * longest, 2 * longest, longest):
        model = small_model()
        model.config.max_position_embeddings = most
        victim = small_victim(model=model)
        change = seen(FewShot(), RETAIN, victim).changes[0]
        changed = [change(example) for example in small_benchmark().examples(FORGET)]
        assert all(victim.fits(example) for example in changed)
        counts.append(max(example.prompt.count("\n") for example in changed))
    assert counts[0] > counts[1] > 0 and counts[2] <= 1


def test_a_prefix_is_an_instruction_or_the_first_words_of_the_answer():
    prefix = Prefix(instructions=("Say: ",), words=(1, 2))
    assert prefix.attempts == ("Say:", "first words of the answer: 1", "first words of the answer: 2")
    example = Example("Where was Ada born?", "Ada was born in Oslo.", key="Oslo", group="Ada")
    text = Example("Ada was", " born in Oslo.", key="Oslo", chat=False)

    def made(setting, of):
        changed = seen(prefix, setting).changes[0](of)
        return changed.prompt, changed.answer

    assert made("Say:", example) == ("Say: Where was Ada born?", "Ada was born in Oslo.")
    assert made("first words of the answer: 2", example) == ("Where was Ada born? Ada was", "born in Oslo.")
    assert made("first words of the answer: 1", text) == ("Ada was born", " in Oslo.")
    for kept in (Example("Where?", "Oslo it is.", key="Oslo"), Example("Where?", "In Oslo.")):
        assert made("first words of the answer: 1", kept) == (kept.prompt, kept.answer), "the fact is never given"
    for key in ("OSLO", "oslo", "STRASSE"):
        other = Example("Where?", "In Oslo, Straße 1.", key=key)
        assert made("first words of the answer: 1", other) == ("Where? In", "Oslo, Straße 1."), "case does not count"
        assert made("first words of the answer: 2", other)[1] == "Straße 1." if key == "STRASSE" else other.answer


def test_the_halves_are_disjoint_and_keep_groups_together():
    benchmark = small_benchmark()
    first, second = halves(benchmark, seed=0)
    assert sorted([*first, *second], key=str) == sorted(benchmark.examples(FORGET), key=str)
    assert {example.group for example in first}.isdisjoint(example.group for example in second)
    assert len(first) == len(second) == 6
    assert (first, second) == halves(benchmark, seed=0) and len(
        {halves(benchmark, s)[0][0].group for s in range(9)}
    ) > 1
    loose = dataclasses.replace(
        benchmark,
        sets={**benchmark.sets, FORGET: [dataclasses.replace(e, group="") for e in benchmark.examples(FORGET)]},
    )
    assert [len(half) for half in halves(loose, 0)] == [6, 6], "an example without a group is one of its own"


def test_held_out_facts_are_measured_on_the_half_that_the_attacker_does_not_have():
    victim = small_victim(steps=8)
    look = seen(HeldOutFacts(), 1e-3, victim)
    first, second = halves(victim.benchmark, victim.seed)
    assert list(HeldOutFacts().documents(victim)) == [example.row() for example in first]
    for benchmark in look.benchmarks:
        assert (
            list(benchmark.examples(FORGET)) == second and benchmark.examples(RETAIN) == victim.benchmark.sets[RETAIN]
        )
        assert benchmark.examples(HOLDOUT) == victim.benchmark.examples(HOLDOUT)
    assert look.steps == [0, 1, 2, 4, 8]
    texts = [dataclasses.replace(example, prompt="", chat=False) for example in (*first, *second)]
    both = dataclasses.replace(victim.benchmark, sets={**victim.benchmark.sets, "forget_texts": texts})
    measured = seen(HeldOutFacts(), 1e-3, small_victim(benchmark=both)).benchmarks[0]
    assert list(measured.texts(FORGET)) == texts[6:] and list(measured.examples(FORGET)) == second
    assert all(torch.equal(w, dict(victim.model.named_parameters())[n]) for n, w in look.models[0].items())


def test_attackers_have_the_documents_that_they_say():
    victim = small_victim()
    benchmark = victim.benchmark
    assert FineTuning().documents(victim) == benchmark.forget and RetainOnly().documents(victim) == benchmark.retain
    few = FewExamples(count=3).documents(victim)
    assert len(few) == 3 and all(row in benchmark.forget for row in few)
    others = [FewExamples(count=3).documents(small_victim(seed=seed)) for seed in range(5)]
    assert any(other != few for other in others)
    texts = {f"{row['question']} {row['answer']}" for row in few}
    batch = victim.batches(few, "attack").batch(0)
    found = {small_tokenizer().decode(row[row > 1].tolist()) for row in batch.tokens}
    assert found <= texts, "few documents are repeated to fill a batch"


def test_fine_tuning_is_measured_after_shares_of_its_steps_and_costs_those_that_it_made():
    look = seen(FineTuning(), 1e-3, small_victim(steps=16))
    assert look.steps == [round(16 * share) for share in SHARES]
    assert seen(FineTuning(), 1e-3, small_victim(steps=1)).steps == [1]
    ended = Seen(float("nan"))
    assert FineTuning().attempt(1e-3, small_victim(steps=16), ended) < 16 and ended.steps == [2]


def test_the_noise_of_embeddings_depends_on_the_position_alone():
    victim = small_victim()
    found = []

    def look(step, model, change=None, benchmark=None):
        embeddings = model.get_input_embeddings()
        tokens = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(0))
        noise = [embeddings(tokens[:, :n]) - victim.model.get_input_embeddings()(tokens[:, :n]) for n in (5, 40)]
        torch.testing.assert_close(noise[0], noise[1][:, :5])
        torch.testing.assert_close(noise[1][0], noise[1][1])
        found.append(noise[1][0].detach())
        return 0.0

    EmbeddingNoise(draws=3).attempt(0.5, victim, look)
    size = float(victim.model.get_input_embeddings().weight.detach().square().mean().sqrt())
    assert len(found) == 3 and not torch.equal(found[0], found[1])
    assert np.isclose(float(torch.stack(found).std()), 0.5 * size, rtol=0.1)


def test_answers_are_written_with_the_noise_of_their_own_positions():
    """As if the whole text was read again for each token."""
    victim = small_victim()
    asked = victim.benchmark.examples("forget")

    def look(step, model, change=None, benchmark=None):
        reader = Reader(model, victim.tokenizer, victim.benchmark)
        for document, written in zip(reader.encoded(asked), reader.written(asked), strict=True):
            begin, last = document.scored.nonzero()[0][[0, -1]]
            tokens = torch.tensor(document.tokens[None, :begin])
            for _ in range(len(document.tokens) - begin + victim.benchmark.longer):
                if tokens.shape[1] == model.config.max_position_embeddings:
                    break
                new = model(tokens, use_cache=False).logits[0, -1].argmax()
                if int(new) in {victim.tokenizer.eos_token_id, *({document.tokens[last]} & {*reader.special.tolist()})}:
                    break
                tokens = torch.cat([tokens, new[None, None]], dim=1)
            expected = victim.tokenizer.decode(tokens[0, begin:], skip_special_tokens=True).strip()
            assert written == expected
        return 0.0

    EmbeddingNoise(draws=1).attempt(1.0, victim, look)


class Rigged(nn.Module):
    """Predicts the token "Oslo" more, the more often "lamp" came before; all other tokens are equally likely."""

    def __init__(self, tokenizer, helps, answer) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(len(tokenizer), 4)
        with torch.no_grad():
            self.embeddings.weight.copy_(torch.randn(len(tokenizer), 4, generator=torch.Generator().manual_seed(0)))
            self.embeddings.weight[:, 0] = 0.0
            self.embeddings.weight[helps, 0] = 1.0
        self.answer = answer

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids, use_cache=False):
        count = self.embeddings(input_ids)[..., 0].cumsum(dim=1)
        logits = torch.zeros(*input_ids.shape, self.embeddings.num_embeddings)
        return CausalLMOutput(logits=logits + count[..., None] * self.answer)


def test_the_suffix_search_finds_the_word_that_helps():
    tokenizer = small_tokenizer()
    victim = small_victim()
    words = SuffixLoss(victim, victim.benchmark.examples(FORGET), 2)
    helps = 7
    right = torch.zeros(len(tokenizer))
    right[tokenizer(" born", add_special_tokens=False)["input_ids"]] = 1.0
    rigged = Rigged(tokenizer, words._tokens[helps], right)
    victim = small_victim(steps=60, model=rigged, original=None)
    attack = Suffix(length=2, candidates=8, likeliest=4)
    look = Seen()
    cost = attack.attempt(2, victim, look)
    example = victim.benchmark.examples(FORGET)[0]
    assert look.changes[0](example).prompt == f"{example.prompt} {words.words[7]} {words.words[7]}"
    assert cost <= 60 and cost == pytest.approx(int(60 / (1 + 8 / 3)) * (1 + 8 / 3)) == look.steps[0]


def test_slopes_are_the_changes_of_the_loss_where_it_is_linear():
    """The loss of a small change of an embedding is that of its slope."""
    victim = small_victim()
    loss = SuffixLoss(victim, victim.benchmark.examples(FORGET), 3)
    read = np.concatenate([document.tokens for document in victim.reader.encoded(loss.examples)])
    own, other, *rest = np.flatnonzero(~np.isin(loss._tokens, read))  # words that only the suffix has
    suffix = np.array([rest[0], own, rest[1]])
    value, slopes = loss.slopes(suffix)
    assert value == pytest.approx(loss(suffix), rel=1e-5) and slopes.shape == (3, len(loss.words))
    weight, (old, new) = victim.model.get_input_embeddings().weight, loss._tokens[[own, other]]
    found, step = [], 1e-3
    for sign in (1, -1):
        moved = small_victim()
        with torch.no_grad():
            moved.model.get_input_embeddings().weight[old] += sign * step * (weight[new] - weight[old])
        found.append(SuffixLoss(moved, victim.benchmark.examples(FORGET), 3)(suffix))
    assert (found[0] - found[1]) / (2 * step) == pytest.approx(slopes[1, other] - slopes[1, own], rel=0.05, abs=0.01)


def test_a_suffix_needs_words_of_one_token_and_room():
    with pytest.raises(UserError, match="the tokenizer has no words of one token: leave out the attack suffix"):
        Suffix().attempt(2, dataclasses.replace(small_victim(), tokenizer=byte_tokenizer()), Seen())
    model = small_model()
    model.config.max_position_embeddings = 8
    with pytest.raises(UserError, match="no question leaves room for a suffix of 2 words"):
        Suffix().attempt(2, small_victim(model=model), Seen())
