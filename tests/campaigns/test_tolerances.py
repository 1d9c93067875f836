"""The tolerances that are printed are those that stand in the tests."""

import re

import pytest
from tolerances import main, read_tolerances

MODULE = """
import torch

close = torch.testing.assert_close

def test_one(model):
    close(model(1), model(2), atol=1e-05, rtol=0)
    for each in (1, 2):
        torch.testing.assert_close(each, each, rtol=10 * EPSILON, atol=2e-06)
    assert model(1) == pytest.approx(3, rel=0.01)
    torch.testing.assert_close(1, 1)
    model(atol=3)

def assert_mean(found, **tolerance):
    close(found, 1, **tolerance)
"""


def test_each_comparison_is_named_with_what_it_allows():
    assert list(read_tolerances(MODULE)) == [
        ("test_one", "absolute 1e-05"),
        ("test_one", "relative 10 * EPSILON, absolute 2e-06"),
        ("test_one", "relative 0.01"),
    ]


@pytest.mark.slow
def test_all_tests_are_read_and_words_choose_among_them(capsys):
    main([])
    everything = capsys.readouterr().out.splitlines()
    assert len(everything) == len(set(everything)) > 100
    assert all(re.fullmatch(r"test_\w+\.py::\w+: .*(absolute|relative) \S.*", line) for line in everything)
    expected = "test_modeling_ast.py::test_logits_equal_stock: absolute 1e-06"
    assert expected in everything
    main(["test_export.py", "two_processes"])
    chosen = capsys.readouterr().out.splitlines()
    assert chosen == [line for line in everything if "test_export.py" in line or "two_processes" in line]
    assert 0 < len(chosen) < len(everything)
