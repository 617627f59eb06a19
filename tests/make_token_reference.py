"""Make the reference tokenizations that the tokenizer tests compare with.

Tokenizes a fixed corpus of texts with llama.cpp and prints the token ids as
JSON.  It needs the package llama-cpp-python (`pip install llama-cpp-python`),
best in an environment of its own, since that compiles llama.cpp.  Only the
vocabulary of the model is loaded, not its weights.

Usage:

    python make_token_reference.py MODEL.gguf > token_reference.json

The same model file and the same llama-cpp-python give the same output, byte
for byte.  The JSON holds

    source               what made the file
    metadata             the tokenizer's settings, as the GGUF file states them
    special_tokens       id, text and type of the control and user-defined tokens
    bytes_without_token  byte values that no token stands for by itself
    lossy_cases          names of the cases whose ids do not spell the whole
                         text: llama.cpp silently drops such bytes
    cases                name, text, parse_special and the resulting ids

No BOS token is ever added.  Every text is tokenized with parse_special on;
those that contain the text of a special token also with it off.
"""

import ctypes
import hashlib
import json
import random
import sys
from pathlib import Path

import llama_cpp

METADATA_KEYS = [
    "general.name",
    "llama.context_length",
    "llama.rope.freq_base",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.chat_template",
]

# Texts by name.  Special-token texts and the generated ones come further down.
TEXTS = {
    # English
    "empty": "",
    "word": "Hello",
    "sentence": "The quick brown fox jumps over the lazy dog.",
    "paragraph": (
        "It was late when the ferry came in, and nobody on the pier spoke. "
        '"Well," said Anna (who had waited since noon), "that\'s that; let\'s '
        "go home - it won't sail again before Monday, will it?\""
    ),
    "mixed_case": "iPhone McDonald eBay NASA HTTPServer camelCaseWord SHOUTING",
    "rare_words": "antidisestablishmentarianism floccinaucinihilipilification",
    "contractions": "I'm we'll they've you're he'd she's don't it's I'd've",
    "contractions_upper": "I'M WE'LL THEY'VE YOU'RE HE'D SHE'S DON'T 'S 'T 'Re 'lL",
    "contractions_typographic": "I’m we’ll don’t ‘quoted’ “double”",
    "apostrophes": "'s 't 're 've 'm 'll 'd 'x ''s '''s a's' !'s 's's rock'n'roll 'tis l'été '",
    "apostrophe_after_digit": "the 1990's and '90s, 5'd 7'll 3're",
    # Spaces and line ends
    "leading_space": " leading",
    "leading_spaces": "    leading",
    "trailing_space": "trailing ",
    "trailing_spaces": "trailing    ",
    "inner_spaces": "one  two   three    four     five",
    "one_space": " ",
    "two_spaces": "  ",
    "seven_spaces": "       ",
    "spaces_100": " " * 100,
    "spaces_100_word": " " * 100 + "x",
    "tabs": "\tone\t\ttwo\t three \tfour\t",
    "tabs_only": "\t\t\t",
    "lf": "a\nb\n\nc\n\n\nd\n",
    "lf_only": "\n",
    "lf_only_many": "\n\n\n\n\n",
    "crlf": "a\r\nb\r\n\r\nc\r\n",
    "cr": "a\rb\r\rc\r",
    "newlines_and_spaces": "a \n b\n  c  \n\n   d \r\n\t e\n ",
    "whitespace_100_mixed": "x" + " \n\t\r " * 20 + "y",
    "vertical_tab_form_feed": "a\vb\fc \v d \f\f e",
    "whitespace_before_punctuation": 'a  . b   , c \n! d\t?  (e)   "f"',
    # Code
    "python": (
        "def fib(n: int) -> int:\n"
        '    """Return the n-th number."""\n'
        "    if n < 2:\n"
        "        return n\n\n"
        "    return fib(n - 1) + fib(n-2)  # slow\n\n\n"
        "print([fib(i) for i in range(10) if i%2==0])\n"
    ),
    "c": (
        "#include <stdio.h>\n\n"
        "int main(int argc, char **argv)\n{\n"
        "\tfor (size_t i = 0; i != 0xFFu; ++i) {\n"
        '\t\tprintf("%zu\\n", i << 2); /* note */\n'
        "\t}\n\treturn argv[argc-1] == NULL ? 1 : 0;\n}\n"
    ),
    "html": (
        '<!DOCTYPE html>\n<ul class="menu">\n  <li><a href="/a?b=1&amp;c=2">A &lt; B</a></li>\n'
        "  <!-- none --><br/>\n</ul>\n"
    ),
    "json": '{\n  "name": "x",\n  "n": [1, 2.5, -3e10, null, true],\n  "o": {"k": "\\u00e9\\n"}\n}',
    "shell": (
        "#!/bin/sh -e\nfor f in *.txt; do\n"
        '  grep -q \'a b\' "$f" && mv -- "$f" "${f%.txt}.bak" || exit $?\n'
        "done 2>&1 | tee -a /tmp/log\n"
    ),
    "sql": "SELECT a.*, COUNT(*) FROM t_a AS a WHERE a.x >= 10 AND b LIKE '%y_' -- end\nGROUP BY 1;",
    "markdown": (
        "# Title\n\n* one\n* **two**\n\n1. `x`\n2. ~~y~~\n\n```py\nx = 1\n```\n\n| a | b |\n|---|---|\n"
    ),
    # Digits and numbers
    "digit": "7",
    "digits_spaced": "1 2  3   4 a5 6b c7d",
    "numbers": "In 2024 there were 1234567890 of 42.",
    "numbers_separated": "1,234,567.89 3.14159 -0.5 +1e-9 1_000_000 0x1F 0b1010 12:34:56 2024-02-29",
    "digits_300": "".join(str((i * i + 3 * i) % 10) for i in range(300)),
    "superscripts": "x² + y³ = z¹⁰ H₂O 10⁻¹",
    "digits_arabic_indic": "\u0661\u0662\u0663 \u06f4\u06f5\u06f6 \u0633\u0646\u0629\u0662\u0660\u0662\u0664",
    "digits_devanagari": "\u0967\u0968\u0969 \u0935\u0930\u094d\u0937\u0968\u0966\u0968\u096a",
    "digits_fullwidth": "１２３ ＴＥＳＴ４",
    "digits_mathematical": "\U0001d7ce\U0001d7cf \U0001d7d8\U0001d7f6x",
    "roman_numerals": "Ⅷ ⅠⅡⅢ chapterⅸ XIV",
    "fractions": "½ cup, 1½ ⅓⅛ 3⁄4",
    "circled_numbers": "①② ❶ ㉑ 〡〢",
    "han_numerals": "一二三 零〇 萬",
    # Punctuation and symbols
    "ascii_printable": "".join(map(chr, range(0x20, 0x7F))),
    "punctuation_runs": "!!! ... ?!?! ---- ==== **** //// <<<>>> (((()))) [[]]{{}} ;;;:::,,, @#$%^&*",
    "punctuation_spaced": " ! .. , - -- (a) [ b ] \"c\" 'd' `e` / \\ | ~ ^",
    "underscores": "_ __ ___init___ snake_case_name _a a_ _1_ __2__ a__b",
    "url": "https://www.example.com:8080/a/b%20c/index.html?q=1&r=two#frag",
    "email": "Mail <first.last+tag@sub.example.co.uk>; or mailto:x@y.org.",
    "path": "C:\\Users\\me\\file.txt /usr/local/lib64/libx.so.1.2 ../../a.b",
    "maths": "∀x∈ℝ: √x² ≥ 0 ∧ ∑ᵢ aᵢ ≠ ∞, ∫f(x)dx ≈ π/2 ± ε → ∅",
    "maths_letters": "𝑎𝑏 𝔸𝔹 ℋℂ",
    "currency": "$5 €10 £20 ¥30 ₹40 5¢ ₿1",
    "dashes_bullets": "a–b — c • d … e · f « g » † § ¶ ™ © ®",
    "box_drawing": "┌─┐\n│ │\n└─┘ █░ ■○",
    # Scripts
    "french": "Où est l'œuvre d'Éloïse\u00a0? Là-bas, ça coûte 3\u00a0€\u00a0!",
    "german": "Straße, Übergrößenträger, STRASSE, \u1e9e",
    "turkish": "Işık İstanbul'da ışıldıyor, i\u0307",
    "vietnamese": "Tiếng Việt rất hay, đặng văn ương",
    "polish_czech": "Zażółć gęślą jaźń. Příliš žluťoučký kůň",
    "greek": "Καλημέρα κόσμε, ἀρχὴ ἦν ὁ λόγος",
    "russian": "Съешь ещё этих мягких булок, да выпей чаю!",
    "chinese": "你好，世界！今天天气很好。 繁體字 \U00020000\U0002a6d6",
    "japanese": "私は東京に住んでいます。コーヒー、ください〜 \uff76\uff80\uff76\uff85",
    "korean": "안녕하세요, 세계! \u1112\u1161\u11ab\u1100\u1173\u11af",
    "arabic": (
        "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c "
        "\u0643\u064e\u062a\u064e\u0628\u064e \u0644\u0640\u0640\u0640\u0627 \u061f"
    ),
    "hebrew_niqqud": (
        "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05b9\u05dc\u05b8\u05dd "
        "\u05d1\u05b0\u05bc\u05e8\u05b5\u05d0\u05e9\u05b4\u05c1\u05d9\u05ea \u05d0\u05f4\u05d1"
    ),
    "hindi": (
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e, "
        "\u0915\u094d\u0937\u0924\u094d\u0930\u093f\u092f\u0964"
    ),
    "thai": (
        "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 \u0e19\u0e49\u0e33 "
        "\u0e57\u0e58"
    ),
    "tamil_georgian_armenian": "\u0bb5\u0ba3\u0b95\u0bcd\u0b95\u0bae\u0bcd გამარჯობა Բարև",
    "mixed_scripts": "abcдеф中文123\u0661\u0662defあ caféΩx",
    # Emoji
    "emoji": "Hi 😀! 🚀🚀 ❤ ☺ x🎉y",
    "emoji_zwj": "👨\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 👩\U0001f3fd\u200d💻",
    "emoji_flags": (
        "\U0001f1ec\U0001f1e7\U0001f1eb\U0001f1f7 \U0001f1ef\U0001f1f5 "
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
    ),
    "emoji_skin_tones": "👍\U0001f3fb👍\U0001f3ff 🖐\U0001f3fd",
    "emoji_keycaps": "1\ufe0f\u20e3 #\ufe0f\u20e3 *\u20e3 0\u20e3",
    "variation_selectors": "\u2764\ufe0f \u2764\ufe0e \u263a\ufe0f a\ufe00 \u8fba\U000e0100",
    # Combining characters and compatibility forms
    "nfc_nfd": "caf\u00e9 cafe\u0301 \u00c5 A\u030a \u1e69 s\u0323\u0307 n\u0303o",
    "combining_stacked": "Z\u0351\u036b\u0343\u036aa\u0327\u0301\u0308\u0302\u0330l\u0334\u0335g\u0489o",
    "combining_alone": "\u0301 \u0301\u0302 a \u0308b 1\u0301 .\u0301",
    "ligatures": "\ufb01sh \ufb02ow o\ufb03ce \u0132 \u01c6 \u0153 \u00e6 \ufdfa",
    "letter_kinds": "\u02b0\u02bc x\u02b9 \u01c5 \u00aa\u00ba \u2126 \u212a \u24b6 \u0345 \u1d43",
    # White space and invisible characters beyond ASCII
    "nbsp": "a\u00a0b \u00a0c\u00a0\u00a0d\u00a0 e\u202ff",
    "unicode_spaces": "a\u2003b \u2009c\u3000d\u3000\u3000e\u1680f\u205fg \u2002",
    "zero_width": "a\u200bb \u200bc\u200c\u200d\u2060d\u00ade\u180ef",
    "bom": "\ufeffHello \ufeffworld\ufeff",
    "line_separators": "a\u2028b \u2029c\n\u2028d\u0085e \u0085\u0085 f",
    "bidi_controls": "a\u200eb\u202ec\u202cd \u2066e\u2069",
    # Control and odd characters
    "nul": "a\0b",
    "nul_only": "\0",
    "nul_many": "\0\0 \0end\0",
    "controls": "a\x01b\x02\x03 \x05c\x07\x08d\x1b[31mred\x1b[0m\x7f",
    "controls_like_space": "a\x1cb\x1dc\x1ed\x1fe \x1c\x1f f\x85",
    "controls_without_token": "a\x04b \x06c\x13\x14d \x16 e\x1d\x1d",
    "latin1_all": "".join(map(chr, range(0x100))),
    "latin1_letters": "".join(map(chr, range(0xC0, 0x100))),
    "private_use": "\ue000 x\uf8ff \U000f0000\U00100000",
    "replacement": "\ufffd a\ufffd\ufffdb",
    "max_code_point": "a\U0010ffff \U0010fffd",
    "noncharacters": "\ufffe\uffff \ufdd0 \U0001ffff",
    "unassigned": "a\u0378b \u0380 \u05ff\U0003fffd",
    "lead_bytes_without_token": "a\U00040000b \U00050123c \U0007ffff \U00080000 \U000bffffd \U000c0000",
    # Long runs
    "letters_200": "a" * 200,
    "letters_upper_200": "Z" * 200,
    "the_100": "the" * 100,
    "dots_100": "." * 100,
    "equals_97": "=" * 97,
    "newlines_60": "\n" * 60,
    "emoji_20": "😂" * 20,
    "han_50": "哈" * 50,
    # Special tokens
    "chatml_message": "<|im_start|>user\nhi<|im_end|>\n",
    "chatml_two_turns": (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\nThe capital of France is Paris.<|im_end|>\n"
        "<|im_start|>user\nAnd how many people live there, in 2024?<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "special_alone": "<|im_end|>",
    "special_endoftext": "one<|endoftext|>two",
    "special_adjacent": "<|im_start|><|im_start|><|im_end|><|endoftext|><|endoftext|>",
    "special_in_word": "un<|im_end|>believ<|endoftext|>able 12<|im_start|>34",
    "special_spaces_around": "a <|im_start|> b  <|im_end|>  c   <|endoftext|>\n <|im_end|> ",
    "special_spaces_only": " <|im_end|> ",
    "special_newlines_around": "\n<|im_start|>\n\n<|im_end|>\r\n",
    "special_apostrophe": "it<|im_end|>'s 'l<|im_end|>l",
    "special_nested": "<|im_<|im_end|>end|> <<|im_start|>> <|<|endoftext|>|>",
    "special_repo": "<repo_name>me/thing<file_sep>src/a.py\nx = 1\n<file_sep>b.py\n<empty_output>",
    "special_reponame": "<reponame>me/thing<filename>a.c<gh_stars>10-100\n",
    "special_jupyter": "<jupyter_start><jupyter_text>Intro<jupyter_code>1+1<jupyter_output>2<jupyter_script>",
    "special_issue": "<issue_start>Bug<issue_comment>fixed <issue_closed>",
    "special_unicode_around": "é<|im_end|>é中<|im_start|>😀<|im_end|>\u0301",
    "special_nul_around": "\0<|im_end|>\0x\0<|im_start|>",
    "special_broken": "<|im_start <|im_end| im_start|> |im_end|> <im_end> <|im_end> <|im_end |> < |im_end|>",
    "special_wrong_case": "<|IM_START|> <|Im_End|> <|endOfText|> <REPO_NAME>",
    "special_foreign": "<s></s> <unk> <pad> <|eot_id|> <|begin_of_text|> [INST] <fim_prefix> <|user|>",
    "special_escaped": "&lt;|im_end|&gt; \\<|im_end|\\> <|im\u200b_end|>",
}

# Inclusive ranges of long-assigned code points that the random texts draw from.
RANDOM_RANGES = [
    (0x20, 0x20),
    (0x20, 0x20),
    (0x20, 0x20),
    (0x09, 0x0D),
    (0x0A, 0x0A),
    (0x20, 0x7E),
    (0x30, 0x39),
    (0x41, 0x5A),
    (0x61, 0x7A),
    (0x61, 0x7A),
    (0x27, 0x27),
    (0x00, 0x03),
    (0x7F, 0x9F),
    (0xA0, 0xFF),
    (0x100, 0x24F),
    (0x300, 0x36F),
    (0x391, 0x3A1),
    (0x400, 0x45F),
    (0x5B0, 0x5C7),
    (0x5D0, 0x5EA),
    (0x621, 0x63A),
    (0x640, 0x669),
    (0x905, 0x939),
    (0x93E, 0x94D),
    (0x966, 0x96F),
    (0xE01, 0xE3A),
    (0xE50, 0xE59),
    (0x2000, 0x200F),
    (0x2010, 0x202F),
    (0x2074, 0x208E),
    (0x20A0, 0x20AC),
    (0x2150, 0x2182),
    (0x2190, 0x22FF),
    (0x2460, 0x249B),
    (0x2500, 0x257F),
    (0x3000, 0x3020),
    (0x3041, 0x3096),
    (0x30A1, 0x30FA),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),
    (0xE000, 0xF8FF),
    (0xFE00, 0xFE0F),
    (0xFF01, 0xFF5E),
    (0xFFFD, 0xFFFD),
    (0x10330, 0x1034A),
    (0x1D7CE, 0x1D7FF),
    (0x1F1E6, 0x1F1FF),
    (0x1F3FB, 0x1F3FF),
    (0x1F600, 0x1F64F),
    (0x20000, 0x2A6D6),
    (0xF0000, 0xFFFFD),
    (0x100000, 0x10FFFD),
]


def pick(rng, sequence):
    """A random element.  Uses only random(), which gives the same numbers in every Python."""
    return sequence[int(rng.random() * len(sequence))]


def random_texts():
    rng = random.Random(20240229)
    texts = {}
    for i in range(20):
        length = 10 + int(rng.random() * 40)
        ranges = (pick(rng, RANDOM_RANGES) for _ in range(length))
        texts[f"random_unicode_{i:02}"] = "".join(chr(pick(rng, range(a, b + 1))) for a, b in ranges)
    printable = [chr(c) for c in range(0x20, 0x7F)] + list("   \n\n\t\r''0123456789stmdlrev")
    everything = [chr(c) for c in range(0x80)]
    for i in range(20):
        length = 10 + int(rng.random() * 70)
        alphabet = printable if i < 14 else everything
        texts[f"random_ascii_{i:02}"] = "".join(pick(rng, alphabet) for _ in range(length))
    return texts


class Vocabulary:
    """The vocabulary of a GGUF file, as llama.cpp sees it."""

    def __init__(self, path):
        self.llama = llama_cpp.Llama(path, vocab_only=True, verbose=False)
        self.metadata = self.llama.metadata
        self.size = self.llama.n_vocab()
        self.vocab = llama_cpp.llama_model_get_vocab(self.llama.model)
        self.pieces = [self._piece(token) for token in range(self.size)]

    def _piece(self, token):
        """The bytes a token stands for.  (Llama.detokenize loses tokens over 32 bytes.)"""
        buffer = ctypes.create_string_buffer(1024)
        length = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, True)
        assert length >= 0, token
        return buffer.raw[:length]

    def special_tokens(self):
        types = {
            llama_cpp.LLAMA_TOKEN_ATTR_CONTROL: "control",
            llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED: "user_defined",
        }
        for token in range(self.size):
            attributes = llama_cpp.llama_vocab_get_attr(self.vocab, token)
            for bit, name in types.items():
                if attributes & bit:
                    yield {"id": token, "text": self.pieces[token].decode(), "type": name}

    def tokenize(self, text, parse_special):
        return self.llama.tokenize(text.encode(), add_bos=False, special=parse_special)

    def spell(self, ids):
        return b"".join(self.pieces[token] for token in ids)


def metadata_value(text):
    """The metadata come as strings: make numbers and truth values of them."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def reference(path):
    vocabulary = Vocabulary(path)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    special = list(vocabulary.special_tokens())
    pieces = set(vocabulary.pieces)
    without_token = bytes(b for b in range(256) if bytes([b]) not in pieces)

    all_special = "".join(token["text"] for token in special)
    texts = {**TEXTS, "special_all": all_special, **random_texts()}

    cases, lossy = [], []
    for name, text in texts.items():
        has_special = any(token["text"] in text for token in special)
        for parse_special in (True, False) if has_special else (True,):
            case = name if parse_special else name + "_unparsed"
            ids = vocabulary.tokenize(text, parse_special)
            spelt = vocabulary.spell(ids)
            if spelt != text.encode():
                # Only bytes that have no token may be missing.
                assert spelt == text.encode().translate(None, without_token), case
                lossy.append(case)
            cases.append({"name": case, "text": text, "parse_special": parse_special, "ids": ids})

    return {
        "source": (
            f"llama.cpp via llama-cpp-python {llama_cpp.__version__}, {Path(path).name}, sha256 {digest}"
        ),
        "metadata": {key: metadata_value(vocabulary.metadata[key]) for key in METADATA_KEYS},
        "special_tokens": special,
        "bytes_without_token": list(without_token),
        "lossy_cases": lossy,
        "cases": cases,
    }


def dump(document):
    """JSON with one entry a line in the lists of objects, so that a diff can be read."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list) and isinstance(value[0], dict):
            rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
            text = f"[\n{rows}\n]"
        else:
            text = json.dumps(value, indent=1 if isinstance(value, dict) else None)
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python make_token_reference.py MODEL.gguf > token_reference.json")
    sys.stdout.write(dump(reference(sys.argv[1])))
