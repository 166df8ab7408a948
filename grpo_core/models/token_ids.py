"""Ids that a tokenizer knows and a model does not: a row of its embedding table each, or an error.

People add tokens to a tokenizer, such as a pad token, and forget to resize the model's table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from grpo_core.models.end_tokens import find_end_ids
from grpo_core.models.folder import BadModel
from grpo_core.models.source import NAME_HINT

FITTING = "Use the tokenizer that belongs to these weights, or resize the model's embeddings."


def num_embeddings(model: Any) -> int:
    """The rows of the embedding table: ids from this one up do not exist for the model."""
    return model.get_input_embeddings().weight.shape[0]


# A tokenizer is Any in this module: the stubs give its ids types that they never have.
def known_pad_id(model: PreTrainedModel, tokenizer: Any) -> int | None:
    """The tokenizer's pad id; None without one, or if the model's table lacks it."""
    pad_id = tokenizer.pad_token_id
    return pad_id if pad_id is not None and 0 <= pad_id < num_embeddings(model) else None


def known_end_ids(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """The ids that end a completion, without those that it cannot write. Raises BadModel."""
    named, num_rows = find_end_ids(model, tokenizer), num_embeddings(model)
    if ids := frozenset(i for i in named if 0 <= i < num_rows):
        return ids
    if named:
        beyond = ", ".join(map(str, sorted(named)[:3]))
        raise BadModel(
            f"its end token has the id {beyond}, and its embedding table has {num_rows:,} rows",
            FITTING,
        )
    raise BadModel(
        "neither its generation config nor its tokenizer names an end token, "
        "so no completion would ever end",
        NAME_HINT,
    )


def check_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Raise BadModel for a tokenizer without the files of its vocabulary.

    For some models transformers makes one from nothing: it reads every text as unknown.
    """
    if (folder / "tokenizer.json").is_file():
        return
    named = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    if named.issuperset(tokenizer.get_vocab()):
        hint = "Save its tokenizer beside it with save_pretrained."
        raise BadModel("its folder has no vocabulary of a tokenizer", hint)


def check_begin(model: PreTrainedModel, tokenizer: Any) -> None:
    """Raise BadModel if the token that begins every text is none of the model's."""
    first = tokenizer("a")["input_ids"][:1]
    if first and first[0] >= num_embeddings(model):
        raise BadModel(beyond_table(model, tokenizer, first[0]), FITTING)


def beyond_table(model: PreTrainedModel, tokenizer: Any, token_id: int) -> str:
    """Says which token the model's table lacks."""
    return (
        f"its tokenizer writes {tokenizer.convert_ids_to_tokens(token_id)!r} with the id "
        f"{token_id:,}, and its embedding table has {num_embeddings(model):,} rows"
    )
