"""How the page looks, and what its browser does by itself."""

import re

import gradio as gr
import pytest

from chat_ui import build_ui
from page_assets import CSS, EXAMPLES, JS, THEME
from scripted_chat import FakeChat


def test_seven_examples_are_offered():
    (chatbot,) = [block for block in build_ui(FakeChat()).blocks.values() if isinstance(block, gr.Chatbot)]
    assert [example["text"] for example in chatbot.examples] == EXAMPLES
    assert len(EXAMPLES) == 7


def luminance(colour: str) -> float:
    """Of a colour like #1f2328 or white; https://www.w3.org/TR/WCAG21/#dfn-relative-luminance."""
    numbers = [255] * 3 if colour == "white" else [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    shares = [number / 255 for number in numbers]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def colour_of(name: str) -> str:
    """A colour of the theme, whose values may name others of it."""
    value = getattr(THEME, name)
    return colour_of(value[1:]) if value.startswith("*") else value


@pytest.mark.parametrize(
    ("text", "ground"),
    [
        ("body_text_color_subdued", "background_fill_primary"),
        ("body_text_color_subdued_dark", "background_fill_primary_dark"),
        ("input_placeholder_color", "input_background_fill"),
        ("input_placeholder_color_dark", "input_background_fill_dark"),
        ("button_primary_text_color", "button_primary_background_fill"),
        ("button_primary_text_color_dark", "button_primary_background_fill_dark"),
    ],
)
def test_text_stands_out_from_its_ground(text, ground):
    """By 4.5 to 1, as https://www.w3.org/TR/WCAG21/#contrast-minimum asks for."""
    darker, lighter = sorted(luminance(colour_of(name)) for name in (text, ground))
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_every_script_is_run_by_something_on_the_page():
    run = {step["js"] for step in build_ui(FakeChat()).config["dependencies"]}
    assert [name for name, script in JS.items() if script not in run] == []


def test_every_style_is_for_something_on_the_page():
    ours = {name for block in build_ui(FakeChat()).blocks.values() for name in block.elem_classes or ()}
    gradio_s = {"stop-button", "example", "clear-status", "katex-display"}
    in_messages = {"typed"}
    plain = re.sub(r"/\*.*?\*/|\{[^{}]*\}", "", CSS, flags=re.DOTALL)
    styled = set(re.findall(r"\.([a-z-]+)", plain))
    assert "conversation" in styled
    assert styled <= ours | gradio_s | in_messages
