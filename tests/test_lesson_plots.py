"""That each drawing shows what it is given; how it looks, people judge."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import lesson_plots


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """The figures stay open until the test has looked at them."""
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    yield
    plt.close("all")


def texts() -> list[str]:
    return [text.get_text() for axes in plt.gcf().axes for text in axes.texts]


def test_lines_go_through_medians_and_their_band_has_all_measurements():
    lesson_plots.plot_lines({"with": {1: [1, 2, 9], 2: 4}}, "x", "y", "title")
    axes = plt.gca()
    assert axes.lines[0].get_ydata().tolist() == [2, 4]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1, 9)


def test_bars_have_their_values_written_on_them():
    lesson_plots.plot_bars({"MB": {"FP16": 269.0, "INT8": 135.0}})
    assert texts() == ["269", "135"]


def test_cache_picture_has_one_token_more_in_each_pass():
    lesson_plots.plot_cache(["a", "b", "c", "d"], prompt=2)
    assert "".join(texts()) == "ab" + "abc" + "abcd"
    colours = [patch.get_facecolor() for patch in plt.gca().patches]
    assert colours[0] == colours[1] == colours[4] == colours[8] != colours[2]  # what is computed


def test_levels_show_the_error_of_each_weight():
    row = np.arange(8.0)
    lesson_plots.plot_levels(row, {"one": row[None] + 0.5, "two": row.reshape(2, 4)}, bits=2)
    errors = [axes.lines[0].get_ydata() for axes in plt.gcf().axes[2:]]
    assert errors[0].tolist() == [0.5] * 8 and errors[1].tolist() == [0] * 8


def test_candidates_leave_the_rest_to_all_others():
    lesson_plots.plot_candidates({"rule": (["a", "a"], [0.5, 0.25])}, "title")
    assert [patch.get_width() for patch in plt.gcf().axes[0].patches] == [0.5, 0.25, 0.25]


def test_what_a_rule_dropped_is_said_so_whatever_rounding_leaves():
    lesson_plots.plot_candidates({"rule": (["a", "b"], [1 - 1e-9, 0])}, "title")
    assert texts() == ["1.00", "dropped", "dropped"]


def test_no_drawing_is_wider_than_a_phone_can_show():
    tokens = [f"{number} " for number in range(40)]
    lesson_plots.plot_cache(tokens[:20], prompt=10)
    lesson_plots.show_tokens(tokens, ["user"] * 40)
    lesson_plots.plot_bars({title: {"FP16": 1.0} for title in "abcd"})
    lesson_plots.plot_candidates({title: (["a"], [0.5]) for title in "abcd"}, "title")
    assert all(plt.figure(number).get_figwidth() <= lesson_plots.WIDTH for number in plt.get_fignums())


def test_tokens_keep_their_order_and_kinds():
    lesson_plots.show_tokens(["Hi", " $x$", "\n", "you"], ["user", "user", "template", "system"])
    assert texts()[:4] == ["Hi", "·$x$", "⏎", "you"]
    assert texts()[4:] == ["template", "system", "user"]


def test_reuse_bars_are_as_long_as_what_they_count():
    lesson_plots.plot_reuse({"turn 1": (0, 20, 0), "turn 2": (30, 12, 4)})
    assert [patch.get_width() for patch in plt.gca().patches] == [0, 30, 20, 12, 0, 4]


def test_differences_are_drawn_beside_what_is_accepted():
    lesson_plots.plot_differences({16: 1e-6, 32: 2e-6}, accepted=1e-4, limit=20)
    assert plt.gca().lines[0].get_ydata().tolist() == [1e-6, 2e-6]
