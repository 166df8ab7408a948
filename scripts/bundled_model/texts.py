"""The supervised texts of the bundled model: prompts of the built-in tasks with completions.

GRPO needs completions that differ. So most answer at once and are mostly wrong, a minority reasons
step by step, or calls the calculator, and is right, and a few break the format. The model then
samples about this mixture, and reasoning or calling is what pays.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from grpo_core.tasks.countdown import evaluate
from grpo_core.types import Prompt

DIRECT_WRONG = 0.8  # share of wrong ones among the answers given at once
RESULT, RESULT_END = "<result>", "</result>"  # around what the calculator answers
IMPERFECT = 0.08  # share of completions with something wrong in their format


def completion(prompt: Prompt, rng: random.Random, reasoned_frac: float) -> str:
    """One supervised completion, without the end token."""
    if rng.random() < reasoned_frac:
        begin, answer = work(prompt, rng)
        text = f"{begin}<answer>{answer}</answer>"
    else:
        answer = (
            NEAR_MISS[prompt.task](prompt, rng) if rng.random() < DIRECT_WRONG else prompt.answer
        )
        text = f"<answer>{answer}</answer>"
    return break_format(text, answer, rng) if rng.random() < IMPERFECT else text


def break_format(text: str, answer: str, rng: random.Random) -> str:
    """The text without tags around the answer, with words outside the tags, or answered twice."""
    return rng.choice(
        [
            text.replace("<answer>", "").replace("</answer>", ""),
            f"={text}",
            f"{text} ok",
            f"{text}<answer>{answer}</answer>",
        ]
    )


# ---- what comes before a right answer: (text, answer) --------------------------------------------


def call_calculator(prompt: Prompt) -> str:
    """34*57 -> <tool>34*57</tool><result>1938</result>"""
    a, b = prompt.meta["numbers"]
    return f"<tool>{a}*{b}</tool>{RESULT}{prompt.answer}{RESULT_END}"


def work(prompt: Prompt, rng: random.Random) -> tuple[str, str]:
    """The reasoning between its tags, or the call."""
    if prompt.task not in REASON:
        return call_calculator(prompt), prompt.answer
    thought, answer = REASON[prompt.task](prompt, rng)
    return f"<think>{thought}</think>", answer


# ---- reasoning, right and step by step: (thought, answer) ----------------------------------------


def reason_sums(prompt: Prompt, rng: random.Random) -> tuple[str, str]:
    """84+39+62 -> 84+39=123,123+62=185"""
    a, b, c = prompt.meta["numbers"]
    return f"{a}+{b}={a + b},{a + b}+{c}={a + b + c}", prompt.answer


def reason_arithmetic(prompt: Prompt, rng: random.Random) -> tuple[str, str]:
    """84+39 -> 4+9=13,8+3+1=12      62-38 -> 12-8=4,6-3-1=2      65-38 -> 15-8=7,6-3-1=2"""
    (a, b), operator = prompt.meta["numbers"], prompt.meta["operator"]
    (ten_a, one_a), (ten_b, one_b) = divmod(a, 10), divmod(b, 10)
    if operator == "+":
        ones = one_a + one_b
        carry = ones >= 10
        tens = f"{ten_a}+{ten_b}{'+1' * carry}={ten_a + ten_b + carry}"
        return f"{one_a}+{one_b}={ones},{tens}", prompt.answer
    borrow = one_a < one_b
    one_a += 10 * borrow
    tens = f"{ten_a}-{ten_b}{'-1' * borrow}={ten_a - ten_b - borrow}"
    return f"{one_a}-{one_b}={one_a - one_b},{tens}", prompt.answer


def reason_sort(prompt: Prompt, rng: random.Random) -> tuple[str, str]:
    """dbca -> a:dbc b:dc c:d d     each picked letter, and the letters left in their old order"""
    left, steps = prompt.meta["word"], []
    while left:
        letter = min(left)
        left = left.replace(letter, "", 1)
        steps.append(f"{letter}:{left}" if left else letter)
    return " ".join(steps), prompt.answer


def reason_countdown(prompt: Prompt, rng: random.Random) -> tuple[str, str]:
    """25 from 3 7 4 -> 3+7+4=14,3*7+4=25      up to two tries that fail, then the right one"""
    guesses = [guess_expression(prompt, rng) for _ in range(rng.randint(0, 2))]
    tries = [guess for guess in guesses if evaluate(guess)[0] != prompt.meta["target"]]
    steps = [f"{expression}={evaluate(expression)[0]}" for expression in [*tries, prompt.answer]]
    return ",".join(steps), prompt.answer


# ---- answers at once, plausible and wrong --------------------------------------------------------


def miss_number(prompt: Prompt, rng: random.Random) -> str:
    """A few off: a slip in one column, or a carry forgotten or made up."""
    wrong = int(prompt.answer) + rng.choice([-1, 1]) * rng.choice(
        [1, 1, 2, 3, 4, 10, 10, 20, 9, 11]
    )
    return str(abs(wrong))


def miss_sort(prompt: Prompt, rng: random.Random) -> str:
    """Two letters in the wrong order, or the wrong letter."""
    letters = list(prompt.answer)
    for _ in range(rng.randint(1, 2)):
        i, j = rng.sample(range(len(letters)), 2)
        letters[i], letters[j] = letters[j], letters[i]
    if rng.random() < 0.2:
        letters[rng.randrange(len(letters))] = rng.choice(prompt.answer)
    return "".join(letters)


def guess_expression(prompt: Prompt, rng: random.Random) -> str:
    a, b, c = rng.sample(prompt.meta["numbers"], 3)
    return f"{a}{rng.choice('+-*')}{b}{rng.choice('+-*')}{c}"


REASON: dict[str, Callable[[Prompt, random.Random], tuple[str, str]]] = {
    "sums": reason_sums,
    "arithmetic": reason_arithmetic,
    "sort": reason_sort,
    "countdown": reason_countdown,
}
NEAR_MISS: dict[str, Callable[[Prompt, random.Random], str]] = {
    "sums": miss_number,
    "arithmetic": miss_number,
    "sort": miss_sort,
    "countdown": guess_expression,
    "products": miss_number,
}
