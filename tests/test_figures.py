"""Figures behind a claim in a few words."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from vqnotes.course.figures import in_words, short


@pytest.mark.parametrize(
    "value, expected",
    [
        (3, "3"),
        (12345, "12,345"),
        (0.123456, "0.123"),
        (4321.7, "4,322"),
        (1e-7, "1e-07"),
        (float("nan"), "nan"),
        (True, "yes"),
        (np.bool_(False), "no"),
        ("token collapse", "token collapse"),
        (pd.Series({"detach": 1, "attach": 2}), "detach 1, attach 2"),  # as a tensor has it
        ("a " * 60, "a " * 29 + "a…"),
        (torch.tensor(2.5, requires_grad=True), "2.5"),
        (np.float32(0.1), "0.1"),
        ([1, 2.5], "1, 2.5"),
        ({"one": 1, "two": 0.5}, "one 1, two 0.5"),
        (pd.Series({("a", 64): 0.25}), "a 64 0.25"),
        (torch.arange(9), "0 to 8, median 4"),
        (np.arange(10.0).reshape(2, 5), "0 to 9, median 4.5"),
        (pd.DataFrame({"a": [1, 2], "b": [3.5, 4]}, index=["x", "y"]), "x a 1, x b 3.5, y a 2, y b 4"),
        (pd.DataFrame({"a": range(9)}), ""),
        (pd.Series(range(100)), "0 to 99, median 49.5"),
        ([1.0, float("nan")] * 5, "1 to 1, median 1"),
        ([float("nan")] * 10, ""),
        (SimpleNamespace(verdict="healthy"), "healthy"),
        ([SimpleNamespace(verdict="healthy"), SimpleNamespace(verdict="rate limit")], "healthy, rate limit"),
        (["a"] * 9, ""),
        (object(), ""),
        ([object()], ""),
        ([], ""),
        (None, ""),
    ],
)
def test_a_value_in_a_few_words(value, expected):
    assert short(value) == expected


def test_figures_are_named_and_what_is_long_is_left_out():
    assert in_words({"own_error": 0.5, "all": object(), "K": 64}) == "own error = 0.5 · K = 64"
    assert in_words({}) == ""
