"""Language models: labelled corpora, a training loop, routing, ablation and steering."""

from typing import TYPE_CHECKING, Any

from routed_rl.extras import require

require("lm", "transformers", "tokenizers", "datasets", "peft", "accelerate")

from routed_rl.lm.adapters import Adapters, add_adapters, delete_forget
from routed_rl.lm.arithmetic import arithmetic_tokenizer, exact_match, generate_arithmetic
from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, Batch, Batches, WholeDocuments
from routed_rl.lm.collating import ROUTE, RouteCollator, pad_rows, routed_batch
from routed_rl.lm.completions import Prompt, completion_accuracy, encode_prompt, read_prompts
from routed_rl.lm.corpora import Corpus, build_corpus, open_corpus
from routed_rl.lm.documents import HUB, PACKAGED_TEXT, Document, from_row, read_documents
from routed_rl.lm.era import (
    EraObjective,
    Expansion,
    ablate,
    era_weights,
    expand,
    expert_weights,
    token_weights,
)
from routed_rl.lm.era_study import EraStudy
from routed_rl.lm.expand_route_ablate import repair, route
from routed_rl.lm.finders import (
    VIROLOGY_TOKENS,
    WORD_LISTS,
    Finder,
    find_pattern,
    find_topic,
    find_words,
    read_words,
    score_tokens,
    single_tokens,
    top_tokens,
)
from routed_rl.lm.fine_tuning import FineTuning, fine_tune
from routed_rl.lm.languages import FORGOTTEN, generate_languages, language_tokenizer
from routed_rl.lm.losses import TokenLoss, document_losses, evaluate, next_token_loss, token_losses
from routed_rl.lm.models import (
    PACKAGED_MODELS,
    PRESETS,
    build_model,
    keeps_apart,
    load_model,
    load_tokenizer,
    save_model,
    save_tokenizer,
)
from routed_rl.lm.preview import Preview, preview
from routed_rl.lm.processes import distribute, gathered_state, process_group, processes, rank
from routed_rl.lm.stories import FORGET, TOPICS, generate_stories, stories_tokenizer
from routed_rl.lm.structure import blocks, mlp
from routed_rl.lm.texts import Texts, split_by_words, text_corpus
from routed_rl.lm.throughput import matmul_rate, training_flops
from routed_rl.lm.tokenizers import character_tokenizer, tokenizer_digest, train_tokenizer
from routed_rl.lm.training import Training, make_optimizer, train
from routed_rl.lm.word_problems import generate_word_problems, word_problem_prompts

if TYPE_CHECKING:
    from routed_rl.lm.trainer import RoutedTrainer, RoutedTrainerMixin

__all__ = [
    "FORGET",
    "FORGET_LABEL",
    "FORGOTTEN",
    "HUB",
    "NO_LABEL",
    "PACKAGED_MODELS",
    "PACKAGED_TEXT",
    "PRESETS",
    "ROUTE",
    "TOPICS",
    "VIROLOGY_TOKENS",
    "WORD_LISTS",
    "Adapters",
    "Batch",
    "Batches",
    "Corpus",
    "Document",
    "EraObjective",
    "EraStudy",
    "Expansion",
    "Finder",
    "FineTuning",
    "Preview",
    "Prompt",
    "RouteCollator",
    "RoutedTrainer",
    "RoutedTrainerMixin",
    "Texts",
    "TokenLoss",
    "Training",
    "WholeDocuments",
    "ablate",
    "add_adapters",
    "arithmetic_tokenizer",
    "blocks",
    "build_corpus",
    "build_model",
    "character_tokenizer",
    "completion_accuracy",
    "delete_forget",
    "distribute",
    "document_losses",
    "encode_prompt",
    "era_weights",
    "evaluate",
    "exact_match",
    "expand",
    "expert_weights",
    "find_pattern",
    "find_topic",
    "find_words",
    "fine_tune",
    "from_row",
    "gathered_state",
    "generate_arithmetic",
    "generate_languages",
    "generate_stories",
    "generate_word_problems",
    "keeps_apart",
    "language_tokenizer",
    "load_model",
    "load_tokenizer",
    "make_optimizer",
    "matmul_rate",
    "mlp",
    "next_token_loss",
    "open_corpus",
    "pad_rows",
    "preview",
    "process_group",
    "processes",
    "rank",
    "read_documents",
    "read_prompts",
    "read_words",
    "repair",
    "route",
    "routed_batch",
    "save_model",
    "save_tokenizer",
    "score_tokens",
    "single_tokens",
    "split_by_words",
    "stories_tokenizer",
    "text_corpus",
    "token_losses",
    "token_weights",
    "tokenizer_digest",
    "top_tokens",
    "train",
    "train_tokenizer",
    "training_flops",
    "word_problem_prompts",
]


def __getattr__(name: str) -> Any:
    """Import what is made from ``transformers.Trainer`` when it is first used, because the Trainer imports much."""
    if name in ("RoutedTrainer", "RoutedTrainerMixin"):
        from routed_rl.lm import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
