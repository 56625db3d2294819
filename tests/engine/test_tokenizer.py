"""Tokens, places and text from the files alone, against transformers' tokenizers."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from darkroom.engine.text_encode import load_tokenizer, tokenize
from darkroom.engine.tokenizer import FileTokenizer, read_tokenizer
from tests import tiny

EMBEDDED = Path(__file__).parents[2] / "src" / "darkroom" / "embedded" / "tokenizer"
PROMPTS = [
    "",
    "a red circle above a blue square",
    "  leading, trailing and   many spaces  ",
    "ünïcødé 日本語 🎈 e\u0301 ﬁ",
    "line\nbreaks\r\n\n\ttabs",
    "[IMG] <|im_end|> </think> <think><|im_start|>user <tool_call> </s>",
    "it's DON'T 12345 3.14",
    "{{ 7 * 7 }} {% raw %}",
]


def prompts() -> list[str]:
    chance = random.Random(5)
    return PROMPTS + ["".join(chance.choices("ab \n\tdé日'🎈<|>_5{}", k=30)) for _ in range(50)]


def folder_of(variant: str) -> Path:
    return {"embedded": EMBEDDED, "base": tiny.embedded() / "tokenizer"}.get(
        variant, tiny.embedded() / "flex" / "tokenizer"
    )


@pytest.mark.parametrize("variant", ["embedded", "base", "flex"])
def test_tokens_are_those_of_transformers(variant: str) -> None:
    folder, encoder = folder_of(variant), "mistral3" if variant == "flex" else "qwen3"
    mine, theirs = read_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert mine is not None
    for prompt in prompts():
        for length in (24, 200):
            assert tokenize(mine, encoder, prompt, length) == tokenize(theirs, encoder, prompt, length), prompt
        for special in (True, False):
            asked = {"add_special_tokens": special, "return_offsets_mapping": True}
            found, reference = mine(prompt, **asked), theirs(prompt, **asked)
            assert found["input_ids"] == reference["input_ids"], prompt
            assert found["offset_mapping"] == reference["offset_mapping"], prompt


@pytest.fixture
def as_on_the_hub(tmp_path: Path) -> Path:
    """The tiny tokenizer as Qwen publish theirs: older files, flags spelled out, tokens that are not special."""
    folder = Path(shutil.copytree(tiny.embedded() / "tokenizer", tmp_path / "tokenizer"))
    content = read(folder / "tokenizer.json")
    tool = {"content": "<tool_call>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    last = max(token["id"] for token in content["added_tokens"])
    content["added_tokens"].append({"id": max(last, *content["model"]["vocab"].values()) + 1, **tool, "special": False})
    content["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = False
    content["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    write(folder / "tokenizer.json", content)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in content["added_tokens"]
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": {"content": "<|endoftext|>", "__type": "AddedToken"},
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write(folder / "tokenizer_config.json", config)
    return folder


def test_files_as_on_the_hub(as_on_the_hub: Path) -> None:
    mine, theirs = read_tokenizer(as_on_the_hub), AutoTokenizer.from_pretrained(as_on_the_hub)
    assert mine is not None
    assert (mine.pad_token_id, mine.padding_side) == (theirs.pad_token_id, theirs.padding_side)
    for prompt in prompts():
        assert tokenize(mine, "qwen3", prompt, 200) == tokenize(theirs, "qwen3", prompt, 200), prompt


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = read(folder / "tokenizer_config.json") | changes
        write(folder / "tokenizer_config.json", {key: value for key, value in config.items() if value is not ...})

    return change


def change_file(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: write(folder / "tokenizer.json", read(folder / "tokenizer.json") | changes)


def unspecial(folder: Path) -> None:
    content = read(folder / "tokenizer.json")
    content["added_tokens"][0]["special"] = False
    write(folder / "tokenizer.json", content)


LEFT_TO_TRANSFORMERS: dict[str, Callable[[Path], None]] = {
    "another class": change_config(tokenizer_class="LlamaTokenizerFast"),
    "code of its own": change_config(auto_map={"AutoTokenizer": ["a.b", None]}),
    "a token before every text": change_config(add_bos_token=True),
    "special tokens are text": change_config(split_special_tokens=True),
    "no pad token": change_config(pad_token=...),
    "a special token that the file lacks": change_config(eos_token="<end>"),
    "one more special token": change_config(additional_special_tokens=["<more>"]),
    "a declared token that differs": change_config(added_tokens_decoder={"0": {"content": "<|im_start|>"}}),
    "templates by name": change_config(chat_template=[{"name": "default", "template": "x"}]),
    "no template": change_config(chat_template=...),
    "a template with the date": change_config(chat_template="{{ strftime_now('%d') }}"),
    "a template for training": change_config(chat_template="{% generation %}x{% endgeneration %}"),
    "a template that is none": change_config(chat_template="{% for %}"),
    "another normalizer": change_file(normalizer={"type": "NFKC"}),
    "other words": change_file(pre_tokenizer={"type": "Whitespace"}),
    "places are trimmed": change_file(
        post_processor={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    ),
    "a pad token that is not special": unspecial,
}


@pytest.mark.parametrize("what", LEFT_TO_TRANSFORMERS)
def test_what_the_files_alone_do_not_tell_is_left_to_transformers(as_on_the_hub: Path, what: str) -> None:
    assert isinstance(read_tokenizer(as_on_the_hub), FileTokenizer)
    LEFT_TO_TRANSFORMERS[what](as_on_the_hub)
    assert read_tokenizer(as_on_the_hub) is None


def test_transformers_reads_what_is_left_to_it(as_on_the_hub: Path) -> None:
    change_config(padding_side="left", additional_special_tokens=["<more>"])(as_on_the_hub)
    tokenizer = load_tokenizer(as_on_the_hub)
    assert not isinstance(tokenizer, FileTokenizer) and tokenizer.padding_side == "left"


def test_a_template_cannot_reach_out_of_its_box(as_on_the_hub: Path) -> None:
    for escape in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ raise_exception('no') }}"):
        change_config(chat_template=escape)(as_on_the_hub)
        tokenizer = read_tokenizer(as_on_the_hub)
        assert tokenizer is not None
        with pytest.raises(TemplateError):
            tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


def test_a_template_may_write_json(as_on_the_hub: Path) -> None:
    change_config(chat_template="{{ messages | tojson(indent=1) }}{{ eos_token }}")(as_on_the_hub)
    mine, theirs = read_tokenizer(as_on_the_hub), AutoTokenizer.from_pretrained(as_on_the_hub)
    messages = [{"role": "user", "content": "<é> & 'x'"}]
    assert mine is not None
    text = mine.apply_chat_template(messages, tokenize=False)
    assert text == theirs.apply_chat_template(messages, tokenize=False)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))
