"""The templates that lie in a folder, and what they may use."""

import json

import pytest
from jinja2.exceptions import SecurityError, TemplateError

from chat_templates import check_chat_template, read_chat_templates, template_environment


def rendered(template: str, **values) -> str:
    return template_environment().from_string(template).render(**values)


def test_a_file_wins_over_the_settings_and_more_templates_have_names(tmp_path):
    settings = {"chat_template": "of the settings"}
    assert read_chat_templates(tmp_path, settings) == {"default": "of the settings"}
    (tmp_path / "chat_template.jinja").write_text("of the file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("with documents")
    assert read_chat_templates(tmp_path, settings) == {"default": "of the file", "rag": "with documents"}


def test_the_older_file_of_models_that_see_is_read_too(tmp_path):
    (tmp_path / "chat_template.json").write_text('{"chat_template": "of the older file"}')
    assert read_chat_templates(tmp_path, {}) == {"default": "of the older file"}
    assert read_chat_templates(tmp_path, {"chat_template": "of the settings"}) == {
        "default": "of the settings"
    }


def test_a_folder_without_a_template_for_a_plain_chat_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no chat template, so .*chat_template\.jinja"):
        check_chat_template(tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("with documents")
    with pytest.raises(ValueError, match="no chat template for a plain chat, only rag"):
        check_chat_template(tmp_path)


def test_a_template_that_is_no_jinja_is_refused(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ValueError, match="is no Jinja that can be read"):
        check_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    check_chat_template(tmp_path)


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
