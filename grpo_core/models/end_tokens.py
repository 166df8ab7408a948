"""The tokens that end a completion."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from grpo_core.errors import StudioError
from grpo_core.models.chat_template import ids_of, render
from grpo_core.models.folder import BadModel
from grpo_core.models.source import Source, one_line

# End-of-turn tokens of common chat templates, tried where neither model nor tokenizer names an end.
_USUAL_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<turn|>",
    "<|return|>",
    "</s>",
)


def named_by_source(source: Source) -> frozenset[int]:
    """The ends that the generation config of a source names. Raises BadModel."""
    try:
        settings = GenerationConfig.from_pretrained(source.name, revision=source.revision)
    except OSError:  # the model has no generation config
        return frozenset()
    except Exception as error:  # the library checks its values in code of many kinds
        raise BadModel(f"its generation config cannot be loaded: {one_line(error)}") from None
    return as_ids(settings.eos_token_id)


# A tokenizer is Any in this module: the stubs of PreTrainedTokenizerBase lack get_added_vocab.
def find_end_ids(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """The ids that end a completion.

    They are the ends of the generation config, as in transformers; the tokenizer's end token, as in
    vLLM; and the end of the template's turn (`template_end`), because base models often name only
    the end of a document. Only if none of these exist, the usual names are tried.
    """
    return end_ids(_named_by_model(model, tokenizer), tokenizer)


def end_ids(by_model: frozenset[int], tokenizer: Any) -> frozenset[int]:
    """The same from the ends that the generation config names, for a model without its weights."""
    named = by_model | as_ids(tokenizer.eos_token_id)
    ends = named | as_ids(template_end(tokenizer, named))
    if ends:
        return ends
    special = _special_tokens(tokenizer)
    return frozenset(special[name] for name in _USUAL_ENDS if name in special)


def template_end(tokenizer: Any, named: frozenset[int]) -> int | None:
    """The id with which the chat template ends an assistant's turn, or None.

    named: the ends that generation config and tokenizer name. The end is the first special token
    after the answer, with two exceptions. If a named end follows it, also before the next question,
    that one is the end: Command R closes the response and then the turn. If there are named ends,
    and the template writes that first token between reasoning and answer too, it is no end, because
    the turn goes on there: gpt-oss closes its analysis with <|end|>, and the turn with <|return|>.
    """
    if not tokenizer.chat_template:
        return None
    thought, said, after = "grpo thought this", "grpo said this", "grpo asks again"
    closing = ids_of(
        tokenizer, _rendered(tokenizer, {"content": said}).rpartition(said)[2].lstrip()
    )
    known = next((i for i in closing if i in named), None)
    if known is not None:
        inner = _rendered(tokenizer, {"content": said}, after).partition(said)[2].partition(after)
        if closing[0] == known or known in ids_of(tokenizer, inner[0]):
            return known
    if not closing or closing[0] not in _special_tokens(tokenizer).values():
        return known
    reasoned = _rendered(tokenizer, {"content": said, "reasoning_content": thought})
    between = reasoned.rpartition(said)[0].rpartition(thought)
    if named and between[1] and closing[0] in ids_of(tokenizer, between[2]):
        return known
    return closing[0]


def as_ids(named: Any) -> frozenset[int]:
    """None, one id or a list of ids, as configurations write them."""
    ids = named if isinstance(named, (list, tuple)) else [named]
    return frozenset(i for i in ids if isinstance(i, int) and not isinstance(i, bool))


def _named_by_model(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """The ends of the generation config.

    A model without one takes them from its configuration, whose class may have a default: 2 for
    Llama. Unless that id is a special token, the default names no end of this model.
    """
    generation = model.generation_config
    named = as_ids(getattr(generation, "eos_token_id", None))
    is_default = getattr(generation, "_from_model_config", False) and named == as_ids(
        getattr(type(model.config), "eos_token_id", None)
    )
    if is_default and not named <= frozenset(_special_tokens(tokenizer).values()):
        return frozenset()
    return named


def _rendered(tokenizer: Any, answer: dict[str, str], next_question: str = "") -> str:
    """A question with this answer, and perhaps the next; "" if the template refuses it."""
    # gpt-oss calls the reasoning "thinking".
    if "reasoning_content" in answer:
        answer = {**answer, "thinking": answer["reasoning_content"]}
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", **answer}]
    if next_question:
        chat.append({"role": "user", "content": next_question})
    try:
        return render(tokenizer, chat, False)
    except StudioError:
        return ""


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    """Name -> id of the special and the added tokens."""
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return special | tokenizer.get_added_vocab()
