"""The tokens that end a completion."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

# End-of-turn tokens of common chat templates. A model that learned to stop at one must be allowed
# to, whatever its generation config says.
_TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<turn|>",
    "<|return|>",
)


# A tokenizer is Any in these two: the stubs of PreTrainedTokenizerBase lack get_added_vocab.
def find_end_ids(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a turn, by the generation config, tokenizer and chat template."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(named if isinstance(named, (list, tuple)) else [named])
    ids |= {tokenizer.eos_token_id, template_end(tokenizer)}
    known = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    ids |= {tokenizer.convert_tokens_to_ids(t) for t in _TURN_ENDS if t in known}
    return frozenset(i for i in ids if i is not None)


def template_end(tokenizer: Any) -> int | None:
    """The id with which the chat template ends an assistant's turn.

    None without a template, or if the template ends a turn with no special token.
    """
    if not tokenizer.chat_template:
        return None
    marker = "grpo said this"
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": marker}],
            tokenize=False,
        )
    # A template is its author's program; one that refuses this chat has no known end.
    except Exception:
        return None
    after = text.rpartition(marker)[2].lstrip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    added = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    return ids[0] if ids and ids[0] in added else None
