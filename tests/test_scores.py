"""Logits to scores."""

import numpy as np
import pytest
import torch

from modeling_ast.data.scores import SCORE_FUNCTIONS, score_function, to_scores


@pytest.mark.parametrize("function", SCORE_FUNCTIONS)
def test_scores_of_arrays_are_those_of_tensors(function):
    logits = 5 * torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    found = to_scores(logits.numpy(), function)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, to_scores(logits, function).numpy(), rtol=1e-5, atol=1e-7)


def test_each_function_gives_what_its_name_promises():
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    assert to_scores(logits, "none") is logits
    torch.testing.assert_close(to_scores(logits, "sigmoid"), 1 / (1 + (-logits).exp()))
    torch.testing.assert_close(to_scores(logits, "softmax"), logits.exp() / logits.exp().sum())


def test_the_problem_type_chooses_as_in_pipelines():
    names = ("multi_label_classification", "single_label_classification", "regression", None)
    assert [score_function(name) for name in names] == ["sigmoid", "softmax", "none", "softmax"]
