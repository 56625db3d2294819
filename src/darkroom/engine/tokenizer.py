"""A tokenizer read from its own files: what text_encode.py asks of one, and no more.

transformers' tokenizers do this and much else, and need a second to be imported and another one to rebuild a large
vocabulary in Python. read_tokenizer() gives one only for files where nothing of that else matters, and where the
tokens are therefore the same; tests/engine/test_tokenizer.py compares them. All others are left to transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

QWEN: Final = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
AS_IN_THE_FILE: Final = ("PreTrainedTokenizerFast", "TokenizersBackend")  # these take tokenizer.json as it is
# What transformers' class for Qwen builds, whatever the file says.
QWEN_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATCHED_VOCABULARY: Final = 100_000  # from here on transformers may correct a tokenizer it takes for Mistral's
NAMED: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTED: Final = ("additional_special_tokens", "extra_special_tokens")
UNKNOWN_TO_US: Final = re.compile(r"strftime_now|\{%-?\s*generation\b")


class FileTokenizer:
    """tokenizer.json with the chat template beside it. pad_token_id, padding_side: the caller pads."""

    is_fast: Final = True

    def __init__(self, tokenizer: Tokenizer, special: Mapping[str, str], template: str, padding_side: str) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._special = special
        self._template = _compiled(template)
        self.chat_template = template
        self.padding_side = padding_side
        self.pad_token_id = tokenizer.token_to_id(special["pad_token"])

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> dict[str, list[Any]]:
        """input_ids, and offset_mapping: of each token, where it begins and ends in the text."""
        encoded = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        found: dict[str, list[Any]] = {"input_ids": encoded.ids}
        return found | {"offset_mapping": encoded.offsets} if return_offsets_mapping else found

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], *, tokenize: bool, **variables: Any) -> str:
        """The text of a conversation. Raises jinja2's TemplateError where the template refuses it."""
        assert not tokenize, "the caller tokenizes"
        return self._template.render(messages=messages, tools=None, documents=None, **self._special, **variables)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)


def read_tokenizer(folder: Path) -> FileTokenizer | None:
    """The tokenizer in a folder; None when its files are not all here or ask for more than is done here."""
    file = folder / "tokenizer.json"
    try:
        text = file.read_text(encoding="utf-8")
        content, config = json.loads(text), json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    template = _template(folder, config)
    special = {name: _text(config[name]) for name in NAMED if config.get(name)}
    if not (template and "pad_token" in special and _is_plain(content, config, special)):
        return None
    try:
        return FileTokenizer(Tokenizer.from_str(text), special, template, config.get("padding_side", "right"))
    except TemplateError:
        return None


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    several = (folder / "additional_chat_templates").is_dir()
    return template if isinstance(template, str) and not several and not UNKNOWN_TO_US.search(template) else None


def _is_plain(content: Mapping[str, Any], config: Mapping[str, Any], special: Mapping[str, str]) -> bool:
    """Whether the file alone says what the tokens are."""
    kind = config.get("tokenizer_class")
    if kind in QWEN:
        as_in_the_file = _is_qwen(content)
    else:
        as_in_the_file = kind in AS_IN_THE_FILE and len(content["model"]["vocab"]) < PATCHED_VOCABULARY
    flags = ("add_bos_token", "add_eos_token", "split_special_tokens", "auto_map")
    return (
        as_in_the_file
        and not any(config.get(flag) for flag in flags)
        and _changes_nothing(content.get("post_processor"))
        and _has_tokens(content, config, special)
    )


def _is_qwen(content: Mapping[str, Any]) -> bool:
    model = {key: value for key, value in content["model"].items() if key not in ("vocab", "merges") and value}
    steps = (content.get("pre_tokenizer") or {}).get("pretokenizers") or []
    if len(steps) != 2 or content.get("normalizer") != {"type": "NFC"}:
        return False
    words = {"type": "Split", "pattern": {"Regex": QWEN_WORDS}, "behavior": "Isolated", "invert": False}
    bytes_ = {key: value for key, value in steps[1].items() if key != "trim_offsets"}  # without effect here
    plain_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return model == {"type": "BPE"} and steps[0] == words and bytes_ == plain_bytes


def _changes_nothing(post_processor: Mapping[str, Any] | None) -> bool:
    """Of a single text: tokens and their places in it stay what they are."""
    if post_processor is None:
        return True
    if post_processor["type"] == "TemplateProcessing":
        return [*map(list, post_processor["single"])] == [["Sequence"]]
    return post_processor["type"] == "ByteLevel" and not post_processor["trim_offsets"]


def _has_tokens(content: Mapping[str, Any], config: Mapping[str, Any], special: Mapping[str, str]) -> bool:
    """Whether all that the configuration calls special is special in the file too, and in the same way."""
    added = {token["content"]: token for token in content.get("added_tokens", ())}
    for name in LISTED:
        if not isinstance(config.get(name) or [], list):
            return False
    listed = [_text(token) for name in LISTED for token in config.get(name) or []]
    for text in (*special.values(), *listed):
        token = added.get(text)
        if not (token and token["special"]) or any(token[flag] for flag in ("lstrip", "rstrip", "normalized")):
            return False
    declared = config.get("added_tokens_decoder") or {}
    return all(added.get(token["content"]) == {"id": int(id_), **token} for id_, token in declared.items())


def _text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _compiled(template: str) -> Template:
    """Sandboxed: templates come with weights, from anywhere."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(template)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
