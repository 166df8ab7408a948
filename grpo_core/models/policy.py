"""Policy: a model with its tokenizer and the ids that end a completion."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.models.chat_template import (
    ChatRefused,
    Message,
    Tools,
    accepted,
    ids_of,
    opened_block,
    render,
)
from grpo_core.models.lora import AdapterOff, adapter_layers
from grpo_core.types import Prompt

OPENING_TOKENS = 200  # of a prompt's end, where a block may be open; a byte may be a token


def asked(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, instruction: str
) -> str | list[Message]:
    """What the model is asked: a chat, or a text if the tokenizer has no chat template.

    meta["before"] holds earlier messages, the system prompt among them. Without a chat template
    they come first, as paragraphs, and the instruction is left out.
    """
    before = list(prompt.meta.get("before", ()))
    if not tokenizer.chat_template:
        return "\n\n".join([*(m["content"] for m in before), prompt.text])
    content = f"{instruction}\n\n{prompt.text}" if instruction else prompt.text
    return accepted(tokenizer, [*before, {"role": "user", "content": content}])


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, instruction: str, tools: Tools = ()
) -> list[int]:
    """Token ids of what the model is asked, and of the beginning of its answer.

    tools: what the chat template tells the model of them. The template, or else the tokenizer,
    writes the begin token. An end token that the tokenizer would add is left out. Raises
    InvalidConfig for a template that cannot be rendered or that refuses the prompt, and for a
    prompt without tokens; and ChatTooLong.
    """
    question = asked(tokenizer, prompt, instruction)
    if isinstance(question, str):
        ids, begin = ids_of(tokenizer, question), _begin_ids(tokenizer)
        ids = ids if begin and ids[: len(begin)] == begin else [*begin, *ids]
        problem = "" if ids else "its tokenizer makes no token of"
    else:
        try:
            ids = ids_of(tokenizer, render(tokenizer, question, True, tools))
            problem = "" if ids else "its chat template writes nothing for"
        except ChatRefused as error:
            roles = ", ".join(str(m.get("role")) for m in question)
            ids, problem = [], f"its chat template refuses a chat of {roles} ({error}):"
    if not problem:
        return ids
    raise InvalidConfig(
        [
            FieldProblem(
                "model.name",
                tokenizer.name_or_path,
                f"{problem} the prompt {prompt.text[:60]!r}",
                "Change this row, or choose another model.",
            )
        ]
    )


def text_of(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """The text of token ids, special tokens included: what their pieces join to.

    A tokenizer of SentencePiece's kind drops a space at the beginning.
    """
    text = tokenizer.decode(
        list(token_ids),
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
        spaces_between_special_tokens=False,
    )
    assert isinstance(text, str)  # one list of ids has one text
    return text


def _begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer adds before a text: its begin token, or none."""
    whole, own = list(tokenizer("a")["input_ids"]), list(ids_of(tokenizer, "a"))
    starts = (i for i in range(len(whole)) if whole[i : i + len(own)] == own)
    return whole[: next(starts, 0)]


def _num_weights(p: nn.Parameter) -> int:
    """Those of the layer: a parameter in four bits holds two weights in a byte."""
    packed = getattr(p, "quant_state", None)
    return p.numel() if packed is None else math.prod(packed.shape)


@dataclass(frozen=True, slots=True)
class Reader:
    """A policy without its weights: enough to encode and count prompts, and to read tool calls.

    end_ids: as a Policy's.
    """

    tokenizer: PreTrainedTokenizerBase
    context: int | None  # tokens, prompt and completion together
    end_ids: frozenset[int] = frozenset()

    def encode(self, prompt: Prompt, instruction: str, tools: Tools = ()) -> list[int]:
        return encode_prompt(self.tokenizer, prompt, instruction, tools)


@dataclass(frozen=True, slots=True)
class Policy:
    """A loaded causal language model.

    end_ids: every id that ends a turn, by the generation config, tokenizer and chat template.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]
    pad_id: int
    context: int | None  # tokens, prompt and completion together

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def num_parameters(self) -> int:
        return sum(map(_num_weights, self.model.parameters()))

    def encode(self, prompt: Prompt, instruction: str, tools: Tools = ()) -> list[int]:
        return encode_prompt(self.tokenizer, prompt, instruction, tools)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens without end, pad and begin tokens; all else is text, tags included."""
        silent = {*self.end_ids, self.pad_id}
        begin = self.tokenizer.bos_token_id
        kept = [t for t in token_ids if t not in silent and t != begin]
        return text_of(self.tokenizer, kept)

    def opening(self, prompt_ids: Sequence[int]) -> str:
        """What a completion's text begins with before its own tokens: the block that is open.

        See `opened_block`. "" for most prompts.
        """
        return opened_block(text_of(self.tokenizer, prompt_ids[-OPENING_TOKENS:]))

    def frozen_copy(self) -> nn.Module:
        """The reference: a frozen copy of the weights, or AdapterOff where there are adapters."""
        if layers := adapter_layers(self.model):
            return AdapterOff(self.model, layers)
        return copy.deepcopy(self.model).requires_grad_(False).eval()
