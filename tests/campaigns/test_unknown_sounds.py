"""The campaign's figures are those of their definitions."""

import numpy as np
import pandas
import pytest
from unknown_sounds import Clips, figures_of, measure, to_markdown


def draw(seed: int, num_clips: int, shift: float = 0.0) -> Clips:
    generator = np.random.default_rng(seed)
    labels = np.arange(num_clips) % 2
    vectors = generator.normal(size=(num_clips, 6)) + np.outer(labels, [3, 0, 0, 0, 0, 0]) + [0, 0, 0, 0, 0, shift]
    return Clips(generator.normal(size=(num_clips, 2)), vectors, labels)


def test_distances_find_what_logits_do_not_show():
    found = measure(draw(0, 80), draw(1, 80), draw(2, 60, shift=8.0), share=0.05)
    for name, figures in found.items():
        if name in ("highest softmax", "energy"):
            assert 0.3 < figures["AUROC"] < 0.7 and figures["caught"] < 0.4
        elif not name.startswith("relative"):  # to the distance from all, which here is all there is
            assert figures["AUROC"] > 0.97 and figures["FPR95"] < 0.1 and figures["caught"] > 0.7, name
        assert figures["refused"] < 0.15
    assert len(found) == 7


def test_figures_are_those_of_a_sorted_list():
    known, unknown = np.arange(1, 101, dtype=float), np.array([0.5, 5.5, 50.5, 200.0])
    figures = figures_of(known, unknown, share=0.1)
    assert figures["AUROC"] == pytest.approx((100 + 95 + 50 + 0) / 400)
    assert figures["FPR95"] == 0.5  # 95 % of the known ones are above 5.95
    assert 0 < figures["refused"] < 0.2


def test_the_table_is_markdown():
    row = {"AUROC": 0.9, "FPR95": 0.5, "refused": 0.05, "caught": 0.25}
    assert (
        to_markdown(pandas.DataFrame([row], ["energy"])).splitlines()[-1]
        == "| energy | 0.900 | 50.0 % | 5.0 % | 25.0 % |"
    )
