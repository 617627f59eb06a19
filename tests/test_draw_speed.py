"""The picture of speeds: current, and true to its figures."""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from docs import draw_speed

RATES = {"peer": [90, 100, 120], "ChatModel": [190, 200, 210]}
PANEL = {"machine": "a processor", "tokens_per_second": RATES}


def test_the_picture_is_what_its_script_draws():
    figures = json.loads(draw_speed.FIGURES.read_text(encoding="utf-8"))
    picture = draw_speed.PICTURE.read_text(encoding="utf-8")
    assert picture == draw_speed.draw(figures), "Draw it: python -m docs.draw_speed"


def test_bars_are_as_long_as_speeds_are_high_and_the_fastest_is_first():
    drawn = draw_speed.draw({"a title": PANEL})
    texts = list(ET.fromstring(drawn).itertext())
    assert texts.index("ChatModel") < texts.index("200") < texts.index("peer") < texts.index("100")
    ours, theirs = (
        float(re.search(rf'class="{colour}-area".*? width="([\d.]+)"', drawn)[1])
        for colour in ("blue", "grey")
    )
    assert ours == pytest.approx(2 * theirs, rel=1e-4)


def test_the_fastest_of_every_panel_fills_it():
    half = {name: [rate / 2 for rate in rates] for name, rates in RATES.items()}
    drawn = draw_speed.draw({"one": PANEL, "other": PANEL | {"tokens_per_second": half}})
    first, second = re.findall(r'"blue-area".*? width="([\d.]+)"', drawn)
    assert first == second
