"""Arithmetic that study.toml may write: `expr`, `when` and `require`. None of it is ever given to Python's `eval`."""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

from persistent_runner.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Value = int | float | str | bool

MOST_CHARACTERS = 1000
_MOST_DIGITS = 300  # of a whole number: more has no place in a deck
_CONSTANTS = {"pi": math.pi}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "min": min,
    "max": max,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log10": math.log10,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "atan2": math.atan2,
    "hypot": math.hypot,
    "radians": math.radians,
    "degrees": math.degrees,
}
_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Formula:
    """One expression over names: numbers, `+ - * / // % **`, comparisons, `and or not`, `a if b else c`, functions.

    `names` are the names that it needs. Comparisons with `==` and `!=` also take text. ValueError where the text is
    none, or calls what is no function of ours.
    """

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self._tree = _parsed(self.text)
        called = {id(node.func) for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        self.names = frozenset(
            node.id
            for node in ast.walk(self._tree)
            if isinstance(node, ast.Name) and id(node) not in called and node.id not in _CONSTANTS
        )

    def __call__(self, values: Mapping[str, Value]) -> Value:
        """Return the value for these values; ValueError, in words, where there is none or it is not finite."""
        try:
            value: Value = _value(self._tree, values)
        except ZeroDivisionError:
            raise ValueError(f"{self.with_values(values)} divides by zero") from None
        except (ArithmeticError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{self.with_values(values)}: {error}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{self.with_values(values)} is {value}, which is not finite")
        return value

    def missed(self, values: Mapping[str, Value]) -> float:
        """Return by how much a condition is missed: 0 where it holds, else above 0, and more the further off it is."""
        if self(values):
            return 0.0
        return _missed(self._tree, values)

    def with_values(self, values: Mapping[str, Value]) -> str:
        """Return the formula and the values it was given, for messages."""
        given = ", ".join(f"{name} = {values[name]!r}" for name in sorted(self.names) if name in values)
        return f"{self.text} ({given})" if given else self.text

    def __repr__(self) -> str:
        """Return the formula as it was written."""
        return f"Formula({self.text!r})"


class Circle(ValueError):
    """Formulas need one another in a circle: `names`."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"goes in a circle: {' -> '.join([*names, names[0]])}")
        self.names = tuple(names)


def _checked(value: str) -> str:
    Formula(value)
    return value


def _condition(value: str) -> str:
    text = Formula(value).text
    if not _is_condition(_parsed(text)):
        raise ValueError(f'"{text}" is no comparison; write it as in {text} > 0')
    return value


def _is_condition(node: ast.AST) -> bool:
    match node:
        case ast.Compare():
            return True
        case ast.BoolOp(values=parts):
            return all(map(_is_condition, parts))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _is_condition(operand)
        case ast.IfExp(body=body, orelse=other):
            return _is_condition(body) and _is_condition(other)
    return False


FormulaText = Annotated[
    str,
    AfterValidator(_checked),
    WithJsonSchema({"type": "string", "maxLength": MOST_CHARACTERS, "title": "formula"}),
]
"""The text of a formula that is one."""
ConditionText = Annotated[FormulaText, AfterValidator(_condition)]
"""The text of a formula that holds or does not."""


def order(formulas: Mapping[str, Formula]) -> list[str]:
    """Return the names of formulas that need one another in an order that works; Circle where there is none."""
    done: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise Circle(above[above.index(name) :])
        if name not in done:
            for needed in sorted(formulas[name].names & formulas.keys()):
                visit(needed, (*above, name))
            done.append(name)

    for name in formulas:
        visit(name, ())
    return done


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> ast.expr:
    if not text:
        raise ValueError("is empty; write a formula such as 2 * width")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"has more than {MOST_CHARACTERS} characters")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{text!r} is no formula: {_not_parsed(text, error)}") from None
    for node in ast.walk(tree):
        if problem := _problem(node):
            raise ValueError(f"{text!r}: {problem}")
    return tree


def _not_parsed(text: str, error: Exception) -> str:
    """Return why a text is no expression, with what is written in its place."""
    if not isinstance(error, SyntaxError):
        return "it is nested too deeply"
    if re.search(r"(?<![=!<>])=(?!=)", text):
        return "compare with =="
    for wrong, right in (("&&", "and"), ("||", "or")):
        if wrong in text:
            return f"write {right} for {wrong}"
    return error.msg


def _problem(node: ast.AST) -> str:
    """Return what is wrong with a part of a formula that is not arithmetic; empty where it is."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
        return "a power is written **, not ^"
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.keywords:
            return "a formula calls functions as in max(a, b) only"
        known = node.func.id in _FUNCTIONS
        return "" if known else f"there is no function {node.func.id}; {did_you_mean(node.func.id, _FUNCTIONS)}"
    if isinstance(node, ast.Constant):
        taken = isinstance(node.value, int | float | str) and not isinstance(node.value, bool)
        return "" if taken else f"{node.value!r} is neither a number nor text"
    allowed = isinstance(node, _ALLOWED)
    return "" if allowed else "a formula is made of names, numbers, arithmetic, comparisons and functions only"


_ALLOWED = (
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Name, ast.Load,
    ast.And, ast.Or, ast.Not, ast.USub, ast.UAdd, ast.Pow, ast.Eq, ast.NotEq,
    *_ARITHMETIC, *_COMPARISONS,
)  # fmt: skip


def _value(node: ast.AST, values: Mapping[str, Value]) -> Any:  # noqa: C901, PLR0911 - one branch for each kind of node
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            if name in values:
                return values[name]
            if name in _CONSTANTS:
                return _CONSTANTS[name]
            raise ValueError(f"{name} has no value")
        case ast.BinOp(left=left, op=op, right=right):
            return _calculate(op, _number(_value(left, values)), _number(_value(right, values)))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, values)
        case ast.UnaryOp(op=op, operand=operand):
            number = _number(_value(operand, values))
            return -number if isinstance(op, ast.USub) else number
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_value(part, values) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_value(part, values) for part in parts)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            return _compared([left, *comparators], ops, values)
        case ast.IfExp(test=test, body=body, orelse=other):
            return _value(body if _value(test, values) else other, values)
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name](*[_number(_value(arg, values)) for arg in args])
    raise ValueError("this is no arithmetic")  # what `_check` let through and nobody knows


def _compared(operands: list[ast.expr], ops: list[ast.cmpop], values: Mapping[str, Value]) -> bool:
    found = [_value(operand, values) for operand in operands]
    for op, left, right in zip(ops, found, found[1:], strict=False):
        if isinstance(op, ast.Eq | ast.NotEq):
            if (left == right) is not isinstance(op, ast.Eq):
                return False
        elif not _COMPARISONS[type(op)](_number(left), _number(right)):
            return False
    return True


def _missed(node: ast.AST, values: Mapping[str, Value]) -> float:
    """Return how far off a condition is that does not hold; 1 where that cannot be said."""
    match node:
        case ast.BoolOp(op=ast.And(), values=parts):
            return math.fsum(_missed(part, values) for part in parts if not _value(part, values))
        case ast.BoolOp(values=parts):
            return min(_missed(part, values) for part in parts)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            found = [_value(operand, values) for operand in (left, *comparators)]
            numbers = all(isinstance(value, int | float) for value in found)
            if numbers and not any(isinstance(op, ast.Eq | ast.NotEq) for op in ops):
                pairs = zip(ops, found, found[1:], strict=False)
                gaps = [right - left if isinstance(op, ast.Gt | ast.GtE) else left - right for op, left, right in pairs]
                return math.fsum(gap for gap in gaps if gap > 0) or sys.float_info.min  # a < a is missed by nothing
    return 1.0


def _calculate(op: ast.operator, left: float, right: float) -> Any:
    if isinstance(op, ast.Pow):
        if isinstance(left, int) and isinstance(right, int) and abs(left) > 1 and right > 0:
            if right * math.log10(abs(left)) > _MOST_DIGITS:
                raise ValueError(f"has more than {_MOST_DIGITS} digits")
            return left**right
        return math.pow(left, right)
    return _ARITHMETIC[type(op)](left, right)


def _number(value: Any) -> Any:
    if isinstance(value, str):
        raise TypeError(f"{value!r} is text, and only == and != take text")
    return value
