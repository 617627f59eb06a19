"""How the page looks, and what its browser does by itself."""

import gradio as gr

from chat_ui import EXAMPLES, build_ui
from scripted_chat import FakeChat


def test_seven_examples_are_offered():
    (chatbot,) = [block for block in build_ui(FakeChat()).blocks.values() if isinstance(block, gr.Chatbot)]
    assert [example["text"] for example in chatbot.examples] == EXAMPLES
    assert len(EXAMPLES) == 7
