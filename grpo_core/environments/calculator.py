"""The built-in environment: arithmetic for a policy that cannot do it in its head."""

import ast
import operator

MAX_DIGITS = 1_000  # of a number, about: Python writes none of more than 4,300
_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


class Calculator:
    """Works out arithmetic. It keeps nothing between calls."""

    def reset(self, **row) -> None:
        """Begin anew."""

    def calculate(self, expression: str) -> str:
        """
        Work out an arithmetic expression with + - * / // % and brackets.

        Args:
            expression: The expression, such as "34*57".

        Returns:
            The result.
        """
        try:
            value = _value(ast.parse(expression.strip(), mode="eval").body)
        except SyntaxError:
            raise ValueError("this is not an arithmetic expression") from None
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant):
        number = node.value
        if isinstance(number, int | float) and not isinstance(number, bool):
            return _bounded(number)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _bounded(_OPERATIONS[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.operand))
    raise ValueError("this is not an arithmetic expression")


def _bounded(value: int | float) -> int | float:
    if isinstance(value, int) and value.bit_length() > 3 * MAX_DIGITS:
        raise ValueError("the number is too large")
    return value
