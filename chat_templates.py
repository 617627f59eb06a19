"""The Jinja that chat templates are written in, and where a model folder keeps its templates.

Knows what templates may use beyond plain Jinja, and the files. Refuses to know tokens and what a chat is.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from json_files import read_json_if_there, read_text


def read_chat_templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """The chat templates of a model folder by name; "default" is the one for a plain chat.

    They are in chat_template.jinja and additional_chat_templates/ or, without such files, in the settings, or
    in chat_template.json, where models that see pictures too once kept theirs.

    Args:
        settings: what tokenizer_config.json holds.
    """
    files = {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: read_text(file) for name, file in files.items()}
    older = read_json_if_there(folder / "chat_template.json")
    templates = settings.get("chat_template") or older.get("chat_template") or {}
    if isinstance(templates, str):
        return {"default": templates}
    if isinstance(templates, list):
        return {entry["name"]: entry["template"] for entry in templates}
    return templates


def check_chat_template(folder: Path) -> None:
    """Refuse a checkpoint without a chat template, or with one that is no Jinja.

    Raises:
        ValueError: with the way out.
    """
    templates = read_chat_templates(folder, read_json_if_there(folder / "tokenizer_config.json"))
    if "default" not in templates:
        others = f" for a plain chat, only {', '.join(sorted(templates))}" if templates else ""
        raise ValueError(
            f"{folder} has no chat template{others}, so it is probably no chat model. If it is one, save the "
            "Jinja text from its model card there as chat_template.jinja."
        )
    try:
        template_environment().from_string(templates["default"])
    except TemplateError as error:
        raise ValueError(f"The chat template of {folder} is no Jinja that can be read: {error}") from error


def template_environment() -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it: a sandbox, blocks that leave no lines behind, a few functions."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class GenerationBlock(Extension):
    """`{% generation %} ... {% endgeneration %}`, around what a model is trained to write, is text here."""

    tags = frozenset({"generation"})

    def parse(self, parser: Parser) -> nodes.Node:
        """The nodes between the two, with variables of their own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # Jinja's own filter escapes what HTML reserves.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
