"""Small hacking worlds for tests: models that were never trained, and few prompts."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from routed_rl.lm.hacking.calculator import calculator_tokenizer
from routed_rl.lm.hacking.worlds import Loophole


class Tiny(Loophole):
    """Sums with a loophole, for a model that knows nothing."""

    levels = (0.5,)

    def base(self, seed):
        tokenizer = calculator_tokenizer()
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **sizes, **ids))
        return model, tokenizer

    def prompts(self, oversight, seed):
        return super().prompts(oversight, seed)[:32]

    def tests(self, seed):
        return super().tests(seed)[:12]


class Unseen(Tiny):
    """The same for whoever sees what an overseer sees, but nothing that was not looked at is solved."""

    def looks(self, row, oversight, draw):
        return bool(row["watched"])

    def solved(self, completion, row):
        return bool(row["watched"]) and super().solved(completion, row)


class Seen(Unseen):
    """What :class:`Unseen` is compared with."""

    def solved(self, completion, row):
        return Tiny.solved(self, completion, row)


class Unwatched(Tiny):
    """No overseer looks at anything."""

    def looks(self, row, oversight, draw):
        return False


class Promptless(Tiny):
    """Its rows have no prompts."""

    def prompts(self, oversight, seed):
        return [{"question": "1+1="}] * 32


class Chatting(Tiny):
    """Its prompts are messages."""

    def prompts(self, oversight, seed):
        return [{"prompt": [{"role": "user", "content": "1+1="}]}] * 32


class Empty(Tiny):
    """It has no tests."""

    def tests(self, seed):
        return []


class Short(Tiny):
    """It has fewer prompts than an update needs."""

    def prompts(self, oversight, seed):
        return super().prompts(oversight, seed)[:3]


class Endless(Tiny):
    """Its completions have no length."""

    most_tokens = None


class Overseen(Tiny):
    """Its levels are no shares."""

    levels = (30,)


class Vague(Tiny):
    """Its overseer has words of its own."""

    def says(self, completion, row):
        return "perhaps"
