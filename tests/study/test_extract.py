"""What a user relies on when a [metrics.NAME] table is checked, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from persistent_runner.study.extract import Extract, formula_mistakes


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            {"file": "a"},
            'needs exactly one of column, regex, json, function and expr, such as column = "drag"; it has none',
        ),
        ({"file": "a", "column": "a", "regex": "(a)"}, "it has column and regex"),
        ({"expr": "1", "function": "a.py:f"}, "needs exactly one of"),
        ({"file": "a", "column": " "}, "its column is empty"),
        ({"file": "a", "column": 0}, "0 is no column; they are counted from 1"),
        ({"file": "a", "column": -1}, "-1 is no column"),
        ({"file": "a", "column": True}, "must be a column's name in quotes, or its number"),
        ({"file": "a", "column": 1.0}, "must be a column's name in quotes, or its number"),
        ({"file": "a", "regex": "("}, "is no regular expression"),
        ({"file": "a", "regex": "a"}, "has 0 groups"),
        ({"file": "a", "regex": "(a)(b)"}, "has 2 groups"),
        ({"file": "a", "column": "a", "reduce": "median"}, "'first', 'last'"),
        ({"file": "a", "column": "a", "json_path": "a"}, "Extra inputs"),
        ({"column": "a"}, "column reads a file, and none is named"),
        ({"regex": "(a)"}, "regex reads a file, and none is named"),
        ({"json": "a"}, "json reads a file, and none is named"),
        ({"function": "post:drag"}, "does not name a function of the study's folder"),
        ({"function": "../post.py:drag"}, "does not name a function of the study's folder"),
        ({"function": "post.py:drag", "reduce": "last"}, "function gives one number; remove reduce"),
        ({"expr": "1", "reduce": "last"}, "expr gives one number; remove reduce"),
        ({"expr": "1", "file": "a"}, "expr calculates from other metrics and parameters; remove file"),
        ({"expr": "a +"}, "is no formula"),
        ({"expr": "open('x')"}, "there is no function open"),
        ({"file": "a", "column": "a", "match": 1}, "match counts the matches of a regex; remove it, column has none"),
        ({"file": "a", "regex": "(a)", "match": 0}, "match counts from 1, or from the end with -1"),
        ({"file": "a", "regex": "(a)", "match": True}, "valid integer"),
        ({"file": "a", "column": 1, "below": "("}, "below\n  Value error, is no regular expression"),
        ({"file": "a", "json": "a", "below": "a"}, "below chooses among lines of text; remove it, json does not read"),
        ({"expr": "1", "below": "a"}, "below chooses among lines of text; remove it, expr does not read by lines"),
        ({"file": "a", "regex": "(a)", "match": 1, "reduce": "last"}, "both choose among the matches"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_at_once(rule: dict[str, Any], message: str) -> None:
    """Exactly one rule, with what it needs and nothing that means nothing beside it."""
    with pytest.raises(ValidationError) as caught:
        Extract.model_validate(rule)
    assert message in str(caught.value)


@pytest.mark.parametrize("file", ["", "/etc/passwd", "../out.txt", "a/../../b", ".attempt/log", "a\nb"])
def test_files_outside_the_working_directory_are_refused(file: str) -> None:
    """A metric reads only below the trial's own working directory."""
    with pytest.raises(ValidationError):
        Extract(file=file, column="cd")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"file": "a", "column": "cd"}, 'column "cd"'),
        ({"file": "a", "column": 3}, "column 3"),
        ({"file": "a", "json": "a.b"}, "json a.b"),
        ({"file": "a", "column": 3, "below": "^ forces"}, "column 3 below ^ forces"),
        ({"expr": "a / b"}, "expr a / b"),
    ],
)
def test_a_rule_in_words(rule: dict[str, Any], said: str) -> None:
    """A name of a column is told from its number."""
    assert Extract(**rule).rule == said


def test_formulas_that_cannot_work() -> None:
    """Names that are not there, names of two things, and circles are found without a number being read."""
    metrics = {
        "drag": Extract(file="a", column="cd"),
        "ratio": Extract(expr="drag / lft + pi"),
        "width": Extract(expr="2 * drag"),
        "lift": Extract(expr="width * chord"),
        "a": Extract(expr="b"),
        "b": Extract(expr="max(a, 1)"),
    }
    assert list(formula_mistakes(metrics, ["width", "chord"])) == [
        (
            ["metrics", "ratio", "expr"],
            'drag / lft + pi: there is no metric and no parameter "lft"; did you mean "lift"?',
        ),
        (["metrics", "lift", "expr"], "width * chord: width is a metric and a parameter; rename one of them"),
        (["metrics", "a", "expr"], "an expr goes in a circle: a -> b -> a; break it"),
    ]
