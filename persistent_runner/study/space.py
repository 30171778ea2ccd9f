"""[space]: what the sampler varies, in Optuna's own words, the constants beside it, and what follows from both."""

from __future__ import annotations

import keyword
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
    model_validator,
)

from persistent_runner.study.formula import FormulaText

if TYPE_CHECKING:
    from typing import Self

    from optuna.distributions import BaseDistribution

# what Jinja2 takes for something else than a name
_NO_NAMES = {"self", "true", "false", "none"}


class _Named(BaseModel):
    """What every entry of [space] may say of itself; `unit` and `label` are for people alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    unit: str | None = Field(default=None, examples=["m"])
    """The unit, for people alone."""
    label: str | None = Field(default=None, examples=["thickness of the skin"])
    """A name for people alone."""


class _Varied(_Named):
    """What the sampler varies, `when` that holds for the other parameters; else the value is `otherwise`, or none."""

    model_config = ConfigDict(json_schema_extra={"dependentRequired": {"otherwise": ["when"]}})
    when: FormulaText | None = Field(default=None, examples=["ribs > 4"])
    """A formula over other parameters: the sampler varies this one only where it holds."""
    otherwise: int | float | str | None = Field(default=None, examples=[0.0])
    """The value where `when` does not hold. Without it there is none then."""

    @model_validator(mode="after")
    def _otherwise_needs_when(self) -> Self:
        if self.otherwise is not None and self.when is None:
            raise ValueError('otherwise goes with when; write when = "ribs > 4" as well, or remove it')
        return self


class FloatParameter(_Varied):
    """A real number from `low` to `high`, both included, optionally in steps or on a logarithmic scale."""

    type: Literal["float"] = "float"
    """What kind of parameter it is."""
    low: float = Field(examples=[0.05])
    """The smallest value."""
    high: float = Field(examples=[0.2])
    """The largest value."""
    log: bool = Field(default=False, examples=[True])
    """Whether the sampler looks at it on a logarithmic scale, for ranges over several orders of magnitude."""
    step: float | None = Field(default=None, examples=[0.01])
    """Only values of whole steps above `low`; `high` must be one. Not together with `log`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self.low, self.high)
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}, and a logarithmic scale starts above zero; raise low")
        if self.step is not None:
            _check_step(self.low, self.high, self.step, log=self.log)
        return self

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        from optuna.distributions import FloatDistribution  # 0.3 s that --help need not pay

        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


class IntParameter(_Varied):
    """A whole number from `low` to `high`, both included, optionally in steps or on a logarithmic scale."""

    type: Literal["int"] = "int"
    """What kind of parameter it is."""
    low: int = Field(examples=[2])
    """The smallest value."""
    high: int = Field(examples=[8])
    """The largest value."""
    log: bool = Field(default=False, examples=[True])
    """Whether the sampler looks at it on a logarithmic scale, for ranges over several orders of magnitude."""
    step: int = Field(default=1, examples=[2])
    """Only values of whole steps above `low`; `high` must be one. Not together with `log`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self.low, self.high)
        if self.log and self.low < 1:
            raise ValueError(f"low is {self.low}, and a logarithmic scale of whole numbers starts at 1; raise low")
        _check_step(self.low, self.high, self.step, log=self.log and self.step != 1)
        return self

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=self.step)


def _choices(value: object) -> tuple[int | float | str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError('must be a list with at least one choice, such as ["6061-T6", "7075-T6"]')
    for choice in value:
        if isinstance(choice, bool) or not isinstance(choice, int | float | str):
            raise ValueError(f'the choice {choice!r} is neither a number nor text; for true write "true"')  # noqa: TRY004 - pydantic takes ValueError alone
        if isinstance(choice, float) and not math.isfinite(choice):
            raise ValueError(f"the choice {choice} is not finite")
        if value.count(choice) > 1:
            raise ValueError(f"the choice {choice!r} stands twice; remove one")
    return tuple(value)


class CategoricalParameter(_Varied):
    """One of `choices`: numbers or text."""

    type: Literal["categorical"] = "categorical"
    """What kind of parameter it is."""
    choices: Annotated[tuple[int | float | str, ...], BeforeValidator(_choices)] = Field(
        examples=[["6061-T6", "7075-T6"]],
        json_schema_extra={"minItems": 1, "uniqueItems": True, "title": "list of numbers or texts"},
    )
    """What it is one of: numbers or text, none of them twice."""

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.choices)


class DerivedParameter(_Named):
    """What follows from other parameters by a formula."""

    expr: FormulaText = Field(examples=["chord * thickness"])
    """The formula."""


def _check_range(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"low ({low:g}) is not below high ({high:g}); swap them, or write a constant instead")


def _check_step(low: float, high: float, step: float, *, log: bool) -> None:
    if log:
        raise ValueError("log and step do not go together; drop one of them")
    if step <= 0:
        raise ValueError(f"step is {step:g}; it must be above zero")
    # Optuna would lower `high` with a warning; decimals, since 0.3 - 0.1 is not 0.2 in binary
    if (Decimal(str(high)) - Decimal(str(low))) % Decimal(str(step)):
        raise ValueError(f"high ({high:g}) is not a whole number of steps ({step:g}) above low ({low:g}); change high")


def _constant(value: object) -> int | float | str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(  # noqa: TRY004 - pydantic takes ValueError alone
            'must be a number, text in quotes, or a table such as { type = "float", low = 0.1, high = 0.2 }'
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"is {value}; a constant is finite")
    return value


def _value(value: object) -> int | float | str:
    if isinstance(value, dict):
        raise ValueError("must be a value, a number or text in quotes: the range stands in [space]")  # noqa: TRY004 - the same
    return _constant(value)


def _tag(value: Any) -> str | None:
    if isinstance(value, dict):
        if "expr" in value:
            return "expr"
        kind = value.get("type")
        return kind if isinstance(kind, str) else None
    if isinstance(value, DerivedParameter):
        return "expr"
    return getattr(value, "type", "constant")


def identifier(value: str) -> str:
    """Return the name of a parameter or a metric; ValueError where a template could not write it."""
    if not value.isidentifier() or keyword.iskeyword(value) or value in _NO_NAMES:
        raise ValueError("is no name; use letters, digits and _, not a digit first, and no word of Python")
    return value


# of other alphabets than ours all signs are let through: regular expressions of editors do not know their letters
_NAME = r"^([A-Za-z_]|[^\x00-\x7F])([A-Za-z0-9_]|[^\x00-\x7F])*$"
Identifier = Annotated[str, AfterValidator(identifier), WithJsonSchema({"type": "string", "pattern": _NAME})]
Constant = Annotated[
    int | float | str,
    PlainValidator(_constant),
    WithJsonSchema({"type": ["number", "string"], "description": "A constant: a number or text.", "examples": [2.0]}),
]
Value = Annotated[
    int | float | str,
    PlainValidator(_value),
    WithJsonSchema({"type": ["number", "string"], "description": "A number or text."}),
]
"""What a design that is tried first has of a parameter."""
Varied = FloatParameter | IntParameter | CategoricalParameter
Parameter = Annotated[
    Annotated[FloatParameter, Tag("float")]
    | Annotated[IntParameter, Tag("int")]
    | Annotated[CategoricalParameter, Tag("categorical")]
    | Annotated[DerivedParameter, Tag("expr")]
    | Annotated[Constant, Tag("constant")],
    Discriminator(_tag),
]
KINDS: dict[str, type[BaseModel]] = {
    "float": FloatParameter,
    "int": IntParameter,
    "categorical": CategoricalParameter,
}
"""What `type` may say."""
