"""Shapes of the pictures: well-formed, readable on light and dark pages, whatever the words are."""

import xml.etree.ElementTree as ET

from docs import svg

SPACE = "{http://www.w3.org/2000/svg}"


def drawn(*parts: str) -> ET.Element:
    return ET.fromstring(svg.card(200, 100, 'a <b> & "c"', parts))


def test_a_card_has_its_size_and_says_what_it_is():
    card = drawn()
    assert (card.get("viewBox"), card.get("width"), card.get("height")) == ("0 0 200 100", "200", "100")
    assert (card.get("role"), card.get("aria-label")) == ("img", 'a <b> & "c"')
    page = card.find(f"{SPACE}rect[@class='page']")
    assert (page.get("width"), page.get("height")) == ("199", "99")  # its border is within the picture


def test_every_colour_is_known_on_light_and_on_dark_pages():
    light, dark = drawn().find(f"{SPACE}style").text.split("@media (prefers-color-scheme: dark)")
    for name, (on_light, on_dark) in svg.COLOURS.items():
        for rules, (line, area) in ((light, on_light), (dark, on_dark)):
            assert f".{name} {{ fill: {line} }}" in rules
            assert f".{name}-line {{ stroke: {line}; fill: none }}" in rules
            assert f".{name}-area {{ fill: {area}; stroke: {line} }}" in rules


def test_words_are_shown_as_they_are():
    (text,) = drawn(svg.text(1.5, 20, "a < b & 'c'", "grey", bold=True)).iter(f"{SPACE}text")
    assert text.text == "a < b & 'c'"
    assert (text.get("x"), text.get("y"), text.get("class")) == ("1.5", "20", "grey")
    assert text.get("font-weight") == "600"


def test_a_box_has_its_lines_in_the_middle_the_first_bold():
    card = drawn(*svg.box(10, 20, 100, 60, "blue", "Head", "one", "two"))
    (area,) = card.findall(f"{SPACE}rect[@class='blue-area']")
    assert [area.get(side) for side in ("x", "y", "width", "height")] == ["10", "20", "100", "60"]
    lines = card.findall(f"{SPACE}text")
    assert [line.text for line in lines] == ["Head", "one", "two"]
    assert [line.get("font-weight") for line in lines] == ["600", None, None]
    assert {(line.get("x"), line.get("text-anchor")) for line in lines} == {("60", "middle")}
    assert [float(line.get("y")) for line in lines] == [
        37.5,
        54.5,
        71.5,
    ]  # around 50, and 4.5 for the baseline


def test_a_line_ends_in_an_arrow_of_its_colour_unless_told_otherwise():
    card = drawn(svg.path("M0 0 h9", "green", dashes="6 4"), svg.path("M0 0 v9", "ink", head=False))
    arrow, line = card.findall(f"{SPACE}path")
    heads = {marker.get("id") for marker in card.iter(f"{SPACE}marker")}
    assert arrow.get("marker-end") == "url(#green-head)" and "green-head" in heads
    assert (arrow.get("d"), arrow.get("stroke-dasharray")) == ("M0 0 h9", "6 4")
    assert (line.get("marker-end"), line.get("stroke-dasharray")) == (None, None)
