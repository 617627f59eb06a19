"""The templates that lie in a folder, and what they may use."""

import json

import pytest
from jinja2.exceptions import SecurityError, TemplateError

from chat_templates import read_chat_templates, template_environment


def rendered(template: str, **values) -> str:
    return template_environment().from_string(template).render(**values)


def test_a_file_wins_over_the_settings_and_more_templates_have_names(tmp_path):
    settings = {"chat_template": "of the settings"}
    assert read_chat_templates(tmp_path, settings) == {"default": "of the settings"}
    (tmp_path / "chat_template.jinja").write_text("of the file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("with documents")
    assert read_chat_templates(tmp_path, settings) == {"default": "of the file", "rag": "with documents"}


def test_where_models_that_see_pictures_kept_their_template_is_looked_at_last(tmp_path):
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "of the processor"}))
    assert read_chat_templates(tmp_path, {}) == {"default": "of the processor"}
    assert read_chat_templates(tmp_path, {"chat_template": "own"}) == {"default": "own"}


def test_json_in_a_template_keeps_letters_and_order():
    assert rendered("{{ x | tojson }}", x={"b": "é<", "a": 1}) == json.dumps(
        {"b": "é<", "a": 1}, ensure_ascii=False
    )


def test_a_template_can_refuse_and_tell_the_time_and_mark_what_is_generated():
    with pytest.raises(TemplateError, match="no such role"):
        rendered("{{ raise_exception('no such role') }}")
    assert rendered("{{ strftime_now('%Y') }}").isdigit()
    assert rendered("{% generation %}text{% endgeneration %}") == "text"


def test_a_template_cannot_reach_out_of_its_values():
    with pytest.raises(SecurityError):
        rendered("{{ x.__class__.__mro__[1].__subclasses__() }}", x="")
    with pytest.raises(SecurityError):
        rendered("{{ x.append(1) }}", x=[])
