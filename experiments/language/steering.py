"""The models of ``routed-rl steering-scalar``: recipes, the corpus, training and measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from routed_rl.lm.batches import Batches, WholeDocuments
from routed_rl.lm.corpora import Corpus, build_corpus
from routed_rl.lm.documents import Document, read_documents
from routed_rl.lm.finders import single_tokens
from routed_rl.lm.inputs import STORIES, text_identity
from routed_rl.lm.losses import evaluate, next_token_loss
from routed_rl.lm.models import PRESETS, build_model, keeps_apart, load_model, load_tokenizer, save_model
from routed_rl.lm.steering import (
    SteeringObjective,
    axis_cosines,
    find_blocks,
    mean_probabilities,
    samples,
    steered,
    steering_router,
    top_tokens,
)
from routed_rl.lm.stories import TOPICS, generate_stories, stories_tokenizer
from routed_rl.lm.tokenizers import tokenizer_digest
from routed_rl.lm.training import Training, train
from routed_rl.runs import RunDirectory, derive_seed
from routed_rl.runs.tables import write_table

MODEL, SCORES = "model", "scores.csv"
SAMPLES, TOP = 5, 10
"""Number of sample texts of each kind, and of top tokens."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a study's models, except seed and device."""

    corpus: str
    documents: int
    validation: float
    """share of documents held out from training"""
    evaluated: int
    """number of validation documents that are measured"""
    model: str
    tokenizer: str
    tokens: tuple[str, ...]
    topics: tuple[tuple[str, ...], ...]
    """the topic of each routed token, which includes the token"""
    blocks: tuple[int, ...]
    steered_block: int
    strengths: tuple[float, ...]
    sample_strength: float
    length: int
    """tokens in a row, at most the positions of the model"""
    batch_size: int
    sample_length: int
    training: Training


CALIFORNIA = (
    *(" California", "California", " Californ", " Oregon", " Colorado", " Texas", " Florida", " Arizona"),
    *(" Sacramento", " Los", " San", " Hawaii", " Nevada", " Utah", " Alaska", " Massachusetts", " Missouri", " CA"),
)
"""The top tokens of the published run (section 4.2.1)."""
RECIPES = {
    "stories": Recipe(
        corpus=STORIES,
        documents=12_000,
        validation=0.1,
        evaluated=600,
        model="tiny",
        tokenizer=STORIES,
        tokens=("bread",),
        topics=(TOPICS["kitchen"],),
        blocks=(0, 1, 2),  # with 3 as well, validation loss rises by more than 0.02 nats
        steered_block=0,
        strengths=(0.0, 2.0, 5.0, 10.0, 20.0, 30.0),
        sample_strength=5.0,
        length=40,
        batch_size=50,
        sample_length=36,
        training=Training(),
    ),
    # Section D. The published script has 16 layers and decays to 6e-5; the paper's 20 layers fit its 303 M parameters.
    "california": Recipe(
        corpus="fineweb-edu",
        documents=6_500_000,
        validation=0.01,
        evaluated=500,
        model="neox-303m",
        tokenizer="gpt2",
        tokens=(" California",),
        topics=(CALIFORNIA,),
        blocks=tuple(range(6, 19)),
        steered_block=10,
        strengths=(0.0, 5.0, 10.0, 20.0, 30.0),
        sample_strength=30.0,
        length=1024,
        batch_size=576,
        sample_length=150,
        training=Training(steps=10_000, learning_rate=1.8e-3, warmup=2_000, accumulate=48, precision="bf16"),
    ),
}


@dataclass(frozen=True)
class Axis:
    """A routed token, and the tokens with which its dimension is evaluated.

    Attributes:
        token: its id.
        others: the other tokens of the topic.
        contrast: the tokens that the topic is compared with: in stories the words of other topics, else all other
            tokens.
    """

    token: int
    others: tuple[int, ...]
    contrast: tuple[int, ...]


class Study:
    """The models of a recipe.

    Args:
        recipe: everything that the models have in common.
        device: device of the models.

    Raises:
        ValueError: for tokens that the tokenizer does not have, or blocks that the model does not have.
        OSError: if the tokenizer, the model or the text cannot be read.
    """

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe, self.device = recipe, device
        name = recipe.tokenizer if recipe.model in PRESETS else recipe.model
        self.tokenizer = stories_tokenizer() if name == STORIES else load_tokenizer(name)
        self.axes = [self._axis(token, topic) for token, topic in zip(recipe.tokens, recipe.topics, strict=True)]
        self.tokens = [axis.token for axis in self.axes]
        model = self.build(0)
        steering_router(model, self.tokens, recipe.blocks)
        find_blocks(model, [recipe.steered_block])
        positions = model.config.max_position_embeddings
        self.length = min(recipe.length, positions)
        self.sample_length = min(recipe.sample_length, positions - 1)
        next(self._documents(), None)  # raises for missing text, before anything is written

    def build(self, seed: int) -> nn.Module:
        """Return a model before training, on the device."""
        name = self.recipe.model
        model = build_model(name, self.tokenizer, seed) if name in PRESETS else load_model(name)
        return model.to(self.device)

    def corpus(self, directory: Path, on_document: Callable[[], None]) -> Corpus:
        """Return the tokenised text, which is built in a directory or opened there.

        Raises:
            ValueError: if no document or every document has the tokens, or the directory holds another corpus.
        """

        def counted() -> Iterator[Document]:
            for document in self._documents():
                yield document
                on_document()

        recipe = self.recipe
        about = {
            "source": recipe.corpus,
            "documents": recipe.documents,
            "content": text_identity(recipe.corpus),
            "tokenizer": tokenizer_digest(self.tokenizer),
            "tokens": self.tokens,
            "validation": recipe.validation,
        }
        return build_corpus(
            directory,
            counted(),
            self.tokenizer,
            forget_tokens=self.tokens,
            validation=recipe.validation,
            about=about,
        )

    def train(self, run: RunDirectory, corpus: Corpus, on_step: Callable[[int], None]) -> None:
        """Train the model of a run from its last checkpoint, and measure it.

        Raises:
            FloatingPointError: if training diverges.
            ValueError: if the corpus is too small for a batch.
        """
        recipe, routed, seed = self.recipe, run.record.config["routed"], run.record.seed
        model = self.build(seed)
        documents, pack = corpus.documents("train"), keeps_apart(model)
        source = Batches(corpus, documents, self.length, recipe.batch_size, seed, pack=pack)
        held_out = WholeDocuments(corpus, corpus.documents("validation")[: recipe.evaluated])
        router = steering_router(model, self.tokens, recipe.blocks) if routed else None
        vocabulary: int = model.get_input_embeddings().weight.shape[0]
        objective = next_token_loss if router is None else SteeringObjective(router, self.tokens, vocabulary)
        with router or nullcontext():
            train(model, source, recipe.training, objective, seed=seed, run=run, on_step=on_step)
        result = self.measure(model, held_out, seed, run.path / SCORES)
        save_model(model, self.tokenizer, run.path / MODEL)
        run.finish({"routed": routed, "seed": seed, **result})

    def measure(self, model: nn.Module, held_out: WholeDocuments, seed: int, scores: Path) -> dict[str, Any]:
        """Return the loss, the results of each axis, and samples. The cosines of all tokens are written to a table."""
        before = mean_probabilities(model, held_out)
        axes, rows = [], []
        for number, axis in enumerate(self.axes):
            cosines, sign = axis_cosines(model, number, axis.token)
            curve = []
            for strength in self.recipe.strengths:
                with steered(model, self.recipe.steered_block, number, sign * strength):
                    after = mean_probabilities(model, held_out) if strength else before
                curve.append({"strength": strength, **self._probabilities(after, axis)})
            with steered(model, self.recipe.steered_block, number, sign * self.recipe.sample_strength):
                written = self._samples(model, seed)
            axes.append({**self._standing(cosines, axis), "sign": sign, "curve": curve, "samples": written})
            rows += [
                {"axis": number, "token": token, "text": self.text(token), "cosine": float(cosines[token])}
                for token in top_tokens(cosines, len(cosines))
            ]
        write_table(rows, scores, ("axis",))
        loss = evaluate(model, held_out).mean()
        return {"validation_loss": loss, "axes": axes, "samples": self._samples(model, seed)}

    def text(self, token: int) -> str:
        """Return the text of a token, in printable characters."""
        text = str(self.tokenizer.decode([token]))
        return text if text.isprintable() else repr(text)

    def _standing(self, cosines: Tensor, axis: Axis) -> dict[str, Any]:
        """The rank of the routed token and its topic among the cosines of all tokens."""
        others = [score for token, score in enumerate(cosines.tolist()) if token != axis.token]
        own = float(cosines[axis.token])
        return {
            "token": self.text(axis.token),
            "rank": sum(score > own for score in others),
            "cosine": own,
            "runner_up": max(others),
            "topic_in_top": sum(token in (axis.token, *axis.others) for token in top_tokens(cosines, TOP)),
            "others_cosine": _mean(cosines, axis.others),
            "contrast_cosine": _mean(cosines, axis.contrast),
            "top": [self.text(token) for token in top_tokens(cosines, TOP)],
        }

    @staticmethod
    def _probabilities(probabilities: Tensor, axis: Axis) -> dict[str, float]:
        token, others = float(probabilities[axis.token]), float(probabilities[list(axis.others)].sum())
        return {"topic": token + others, "token": token}

    def _samples(self, model: nn.Module, seed: int) -> list[str]:
        return samples(model, self.tokenizer, SAMPLES, self.sample_length, derive_seed(seed, "samples"))

    def _axis(self, text: str, topic: Sequence[str]) -> Axis:
        (token,) = single_tokens(self.tokenizer, [text])
        others = tuple(sorted({*single_tokens(self.tokenizer, topic)} - {token}))
        if self.recipe.tokenizer == STORIES and self.recipe.model in PRESETS:
            compared = {*single_tokens(self.tokenizer, [word for words in TOPICS.values() for word in words])}
        else:
            compared = set(range(len(self.tokenizer)))
        return Axis(token, others, tuple(sorted(compared - {token, *others})))

    def _documents(self) -> Iterator[Document]:
        if self.recipe.corpus == STORIES:
            return generate_stories(self.recipe.documents, seed=0)
        return read_documents(self.recipe.corpus, self.recipe.documents)


def _mean(cosines: Tensor, tokens: Sequence[int]) -> float | None:
    """The mean cosine of tokens; None without tokens, because a result cannot hold NaN."""
    return float(cosines[list(tokens)].mean()) if tokens else None
