"""How a policy is told of its tools, calls them and reads their answers, by its chat template.

The ids of a turn are appended to those before: earlier turns are never tokenised again, so what was
sampled is what is trained. Only the new part is rendered, with the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from grpo_core.environments.calls import (
    Parse,
    Parsed,
    bundled_calls,
    calls_of_message,
    hermes_calls,
    llama_calls,
)
from grpo_core.environments.environment import Environment
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.models import Policy, Reader
from grpo_core.models.chat_template import (
    ChatRefused,
    Message,
    ids_of,
    parsed_response,
    render,
    takes_tools,
)
from grpo_core.models.policy import text_of
from grpo_core.types import Prompt, Rollout

MAX_ERROR_CHARS = 300  # of an error, for the policy
CALL_ID = "call00001"
MARK = "grpo calls this"  # finds the turn that calls a tool in a rendered chat
SYSTEM = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{}\n"
    "</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)


class ToolChat:
    """A policy's tokenizer and an environment's tools.

    stop: the text that ends an action early; "" where the end of the turn ends it.
    """

    def __init__(self, policy: Policy | Reader, environment: Environment) -> None:
        """Raises InvalidConfig for a chat template that cannot show a tool's answer."""
        self._policy = policy
        self.tokenizer, self.context = policy.tokenizer, policy.context
        self._schemas, self.tools = environment.schemas, environment.tools
        texts = (text_of(self.tokenizer, [i]) for i in sorted(policy.end_ids))
        self._ends = [text for text in texts if text]  # of a turn
        self.is_chat = bool(self.tokenizer.chat_template)
        has_tools = bool(self.tools)
        self.stop = "</tool>" if has_tools and not self.is_chat else ""
        self.in_template = (  # whether the chat template tells the model of its tools
            self.is_chat and has_tools and takes_tools(self.tokenizer, self.tools)
        )
        self._parse = self._format() if has_tools else lambda text, schemas: Parsed(text)
        if self.is_chat and has_tools:
            self.observation_ids([(next(iter(self._schemas)), "1")])

    def _format(self) -> Parse | None:
        """The function that finds calls; None: the tokenizer's response template."""
        if not self.is_chat:
            return bundled_calls
        template = str(self.tokenizer.chat_template)
        if not self.in_template or ("<tool_call>" in template and '{"name"' in _plain(template)):
            return hermes_calls
        if '"parameters"' in template and "ipython" in template:
            return llama_calls
        return None if getattr(self.tokenizer, "response_template", None) else hermes_calls

    def encode(self, prompt: Prompt, instruction: str) -> list[int]:
        """Ids of the prompt, with the tools where the policy reads chats."""
        if self.in_template:
            return self._policy.encode(prompt, instruction, self.tools)
        if not self.is_chat or not self.tools:
            return self._policy.encode(prompt, instruction)
        tools = "\n".join(map(json.dumps, self.tools))
        before = [
            {"role": "system", "content": SYSTEM.format(tools)},
            *prompt.meta.get("before", ()),
        ]
        meta = {**prompt.meta, "before": _one_system(before)}
        return self._policy.encode(replace(prompt, meta=meta), instruction)

    def parse(self, before: Sequence[int], action: Rollout) -> Parsed:
        """The calls of an action. before: all ids that it follows."""
        if self._parse is not None:
            return self._parse(action.completion.text, self._schemas)
        message = parsed_response(
            self.tokenizer,
            text_of(self.tokenizer, before),
            text_of(self.tokenizer, action.completion_ids),
            self.tools,
        )
        # Parsed text lacks what the prompt opened; without a call the text stays as it is.
        parsed = calls_of_message(message, self._schemas)
        if not parsed.calls:
            return Parsed(action.completion.text)
        said = parsed.said
        for end in self._ends:
            said = said.replace(end, "")
        return replace(parsed, said=said)

    def answer_text(self, text: str, error: str) -> str:
        """What the policy reads of an answer."""
        if not error:
            return text
        # A tokenizer of bytes would spend all of a short budget on the reason.
        return f"Error: {error[:MAX_ERROR_CHARS]}" if self.is_chat else "error"

    def observation_ids(self, answers: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of the answers to an action's calls, and of what begins the next action.

        answers: tool and text. They follow the token that ended the action.
        """
        return ids_of(self.tokenizer, self._observation(answers))

    def _observation(self, answers: Sequence[tuple[str, str]]) -> str:
        if not self.is_chat:
            return "".join(f"<result>{text}</result>" for _, text in answers)
        name = next(tool for tool in (*(t for t, _ in answers), *self._schemas) if tool)
        exchange = self.exchange(MARK, (name, {"mark": MARK}), answers)
        chat: list[Message] = [{"role": "user", "content": "."}, *exchange]
        try:
            text = render(self.tokenizer, chat, True)
        except ChatRefused as error:
            raise self._fault(f"its chat template refuses a tool's answer ({error})") from None
        # What follows the end of the turn that called. A template may write that turn otherwise
        # once it is answered, as Qwen 3 drops its thinking; the ids of the turn stay as they are.
        marked = text.find(MARK)
        found = [(text.find(e, max(marked, 0)), len(e)) for e in self._ends]
        cuts = [at + length for at, length in found if at >= 0]
        if marked < 0 or not cuts:
            raise self._fault("its chat template does not end the turn that calls a tool")
        return text[min(cuts) :]

    def exchange(
        self,
        said: str,
        call: tuple[str, Mapping[str, Any]],
        answers: Sequence[tuple[str, str]],
    ) -> list[Message]:
        """An action that calls a tool, and the answers, as the chat template takes them.

        call: tool and arguments. answers: tool, "" if the call named none, and text.
        """
        name, arguments = call
        if not self.in_template:
            body = "\n".join(f"<tool_response>\n{text}\n</tool_response>" for _, text in answers)
            content = said + self.written(name, arguments)
            return [
                {"role": "assistant", "content": content},
                {"role": "user", "content": body},
            ]
        function = {"name": name, "arguments": dict(arguments)}
        return [
            {
                "role": "assistant",
                "content": said,
                "tool_calls": [{"type": "function", "id": CALL_ID, "function": function}],
            },
            *(
                {"role": "tool", "name": tool or name, "content": text, "tool_call_id": CALL_ID}
                for tool, text in answers
            ),
        ]

    def written(self, tool: str, arguments: Mapping[str, Any]) -> str:
        """A call as this policy would write it, nearly."""
        if self._parse is bundled_calls:
            [value, *others] = arguments.values() or ("",)
            alone = len(self._schemas) == 1 and not others
            text = str(value) if alone else json.dumps({"name": tool, "arguments": arguments})
            return f"<tool>{text}</tool>"
        if self._parse is llama_calls:
            return json.dumps({"name": tool, "parameters": arguments})
        return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"

    def _fault(self, problem: str) -> InvalidConfig:
        name, hint = self.tokenizer.name_or_path, "Choose another model, or task.environment none."
        return InvalidConfig([FieldProblem("model.name", name, problem, hint)])


def _plain(template: str) -> str:
    return template.replace("\\", "").replace(" ", "")


def _one_system(messages: Sequence[Message]) -> list[Message]:
    """System messages at the beginning as one: many templates take only one."""
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    content = "\n\n".join(str(m["content"]) for m in messages[:first])
    return [{"role": "system", "content": content}, *messages[first:]]
