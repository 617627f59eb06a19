"""A model folder's tokenizer, open in a moment: text to token ids and back, and messages to a prompt.

Knows the files that transformers' tokenizers are saved in, and what their keys mean. Offers what a chat needs
of such a tokenizer, under the same names and with the same results, so that either kind will do. Refuses to
know transformers and its tokenizer classes, torch, models, and what a chat is.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template
from tokenizers import AddedToken, Tokenizer

from chat_templates import read_chat_templates, template_environment
from json_files import read_json_if_there, read_text

TOKENIZER_FILE = "tokenizer.json"
TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What transformers' apply_chat_template understands besides; templates would be given it in silence.
NOT_OFFERED = frozenset(
    (
        "continue_final_message",
        "max_length",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenizer_kwargs",
        "truncation",
    )
)


class ChatTokenizer:
    """What a chat uses of a tokenizer; `open_tokenizer` makes one. Any thread may call its methods.

    Arguments have the defaults that they have in transformers.

    Attributes:
        backend_tokenizer: the tokenizer of the `tokenizers` package that does the work.
        special_tokens_map: tokens by their names, as templates see them: {"bos_token": "<s>", ...}.
        chat_templates: Jinja texts by name; "default" is the one for a plain chat.
        chat_template: the text of the default one, or None.
        bos_token, eos_token, unk_token, pad_token: None where there is none; their ids end in _id.
    """

    def __init__(self, backend: Tokenizer, special_tokens: dict[str, str], chat_templates: dict[str, str]):
        self.backend_tokenizer = backend
        self.special_tokens_map = special_tokens
        self.chat_templates = chat_templates
        self.chat_template = chat_templates.get("default")
        self.bos_token, self.bos_token_id = self._named("bos_token")
        self.eos_token, self.eos_token_id = self._named("eos_token")
        self.unk_token, self.unk_token_id = self._named("unk_token")
        self.pad_token, self.pad_token_id = self._named("pad_token")
        self._environment = template_environment()
        self._compiled: dict[str, Template] = {}

    def _named(self, name: str) -> tuple[str | None, int | None]:
        token = self.special_tokens_map.get(name)
        return token, None if token is None else self.backend_tokenizer.token_to_id(token)

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens that are found in a text before anything else is split off, by id."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    def get_vocab(self) -> dict[str, int]:
        """The ids of all tokens, added ones included."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text.

        Args:
            add_special_tokens: put those tokens around it that this tokenizer puts around every text. What a
                chat template has made holds them already.
        """
        # Unlike `encode`, this leaves Python's lock to other threads, and counts no positions in the text.
        (encoding,) = self.backend_tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def __call__(
        self, text: str, add_special_tokens: bool = True, verbose: bool = True
    ) -> dict[str, list[int]]:
        """`encode` in the form that transformers' tokenizers are called in: the ids are under "input_ids".

        Args:
            verbose: transformers warns of long texts; here it makes no difference.
        """
        return {"input_ids": self.encode(text, add_special_tokens)}

    def decode(
        self,
        ids: Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> str:
        """The text of token ids.

        Raises:
            ValueError: spaces are to be cleaned up, that is, some that were written are to be left out.
        """
        if clean_up_tokenization_spaces:
            raise ValueError("This tokenizer changes no text: clean_up_tokenization_spaces must be False.")
        return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int | None] | None:
        """The id of a token, or of each of several; of an unknown one that of `unk_token`, or None."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        number = self.backend_tokenizer.token_to_id(tokens)
        return self.unk_token_id if number is None else number

    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> str | list[str | None] | None:
        """The token with an id, or with each of several; None where there is no such id."""
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        return [self.backend_tokenizer.id_to_token(number) for number in ids]

    def apply_chat_template(
        self,
        conversation: Sequence[dict[str, Any]],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        **variables,
    ) -> str | dict[str, list[int]]:
        """A conversation as the prompt that a chat template makes of it.

        Args:
            conversation: messages as the template wants them: dicts with "role", "content" and others.
            chat_template: a Jinja text or the name of one of `chat_templates`; without it the default one.
            add_generation_prompt: end with the beginning of an assistant's turn.
            tokenize: return {"input_ids": ids} instead of the text.
            variables: more that the template can see.

        Raises:
            jinja2.TemplateError: the template is no Jinja, or it refuses the conversation.
            ValueError: there is no such template.
            TypeError: an argument that only transformers' tokenizers have.
        """
        if wrong := NOT_OFFERED & variables.keys():
            raise TypeError(f"apply_chat_template has no argument {', '.join(sorted(wrong))} here.")
        text = self.chat_template if chat_template is None else chat_template
        if text is None:
            names = f" (only {', '.join(sorted(self.chat_templates))})" if self.chat_templates else ""
            raise ValueError(f"This tokenizer has no default chat template{names}: pass one.")
        text = self.chat_templates.get(text, text)
        if text not in self._compiled:
            self._compiled[text] = self._environment.from_string(text)
        # Templates ask whether the first two are none, not whether they are defined.
        visible = {"tools": None, "documents": None} | self.special_tokens_map | variables
        visible |= {"messages": conversation, "add_generation_prompt": add_generation_prompt}
        prompt = self._compiled[text].render(visible)
        return self(prompt, add_special_tokens=False) if tokenize else prompt


def open_tokenizer(folder: str | Path) -> ChatTokenizer:
    """Read the tokenizer of a model folder.

    tokenizer.json says how texts are split; tokenizer_config.json and special_tokens_map.json give tokens
    names and may add some. For the chat templates see `chat_templates.read_chat_templates`.

    Raises:
        FileNotFoundError: there is no tokenizer.json.
        ValueError: a file holds something else than it should; the message names it.
    """
    folder = Path(folder)
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise FileNotFoundError(f"There is no {TOKENIZER_FILE} in {folder}; converting the model writes one.")
    try:
        backend = Tokenizer.from_str(read_text(file))
    except Exception as error:  # tokenizers raises no narrower kind
        raise ValueError(f"{file} holds no tokenizer that can be read: {error}") from error
    settings = read_json_if_there(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:  # else special_tokens_map.json is only there for older readers
        settings |= read_json_if_there(folder / "special_tokens_map.json")
    special_tokens = _special_tokens(settings)
    backend.add_tokens(list(_missing_tokens(backend, settings, special_tokens)))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = settings.get("split_special_tokens", False)
    names = {name: token.content for name, token in special_tokens.items()}
    return ChatTokenizer(backend, names, read_chat_templates(folder, settings))


def _special_tokens(settings: dict[str, Any]) -> dict[str, AddedToken]:
    """The tokens that a tokenizer's settings name: the usual ones first, then its own."""
    own = settings.get("extra_special_tokens")
    own = own if isinstance(own, dict) else {}  # else a list of tokens without names
    own = {name: settings[name] for name in settings if name.endswith("_token")} | own
    values = {name: settings.get(name) for name in TOKEN_NAMES} | own
    return {name: _added_token(value) for name, value in values.items() if isinstance(value, str | dict)}


def _missing_tokens(
    backend: Tokenizer, settings: dict[str, Any], special_tokens: dict[str, AddedToken]
) -> Iterator[AddedToken]:
    """The tokens that the settings add to tokenizer.json, or describe again, in the order of their ids."""
    names = {token.content for token in special_tokens.values()}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    described = settings.get("added_tokens_decoder", {})
    for number in sorted(described, key=int):
        token = AddedToken(**described[number])
        token.special = token.special or token.content in names
        known.add(token.content)
        yield token
    lists = (settings.get("extra_special_tokens"), settings.get("additional_special_tokens"))
    unnamed = [_added_token(value) for values in lists if isinstance(values, list) for value in values]
    for token in (*special_tokens.values(), *unnamed):
        if token.content not in known:
            known.add(token.content)
            yield token


def _added_token(value: str | dict[str, Any]) -> AddedToken:
    """A special token as settings write it: its text, or that with how it is found in a text."""
    fields = {"content": value} if isinstance(value, str) else value
    return AddedToken(**{key: fields[key] for key in fields if key != "__type"} | {"special": True})
