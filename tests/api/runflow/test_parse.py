"""Every field of a run's body: missing, null, wrong type, below, above, at the edges, not in the list."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from darkroom.api.runflow.errors import BadRequest, Rejected, flat
from darkroom.api.runflow.parse import ModelRules, RunBody, fit_size, image_request, parse_run, read_json
from darkroom.api.runflow.schema import PRESETS
from darkroom.catalog.catalog import load_catalog
from darkroom.types import MAX_SEED, Acceleration, ImageFormat, ImageRequest

CATALOG = load_catalog()
TEXT = "black-forest-labs/flux-2-klein-4b"
EDIT = f"{TEXT}/edit"
FLEX = "black-forest-labs/flux-2-flex"
PICTURE = "https://example.com/cat.png"
UNFIT = {  # JSON values by type
    "string": "many",
    "integer": 7,
    "fraction": 1.5,
    "boolean": True,
    "array": [1],
    "object": {"a": 1},
}


def rules(model: str = TEXT) -> ModelRules:
    return ModelRules(*CATALOG.resolve_runflow(model))


RULES = {model: rules(model) for model in (TEXT, EDIT, FLEX)}


def parsed(given: dict[str, Any], model: str = TEXT, **envelope: Any) -> RunBody:
    needed = {"prompt": "a cat"} | ({"image_urls": [PICTURE]} if model == EDIT else {})
    return parse_run(RULES[model], {"input": needed | given, **envelope})


def refusals(body: dict[str, Any], model: str = TEXT) -> dict[str, str]:
    """Kind of refusal by field; every refusal says something."""
    with pytest.raises(Rejected) as caught:
        parse_run(RULES[model], body)
    answer = read_json(bytes(flat(caught.value).body))
    assert answer["code"] == "VALIDATION_ERROR"
    assert answer["message"]
    for entry in answer["errors"]:
        assert entry["msg"]
        assert entry["field"] in entry["msg"]
        assert ".".join(str(part) for part in entry["loc"]) == entry["field"].replace("[", ".").replace("]", "")
    return {entry["field"]: entry["type"] for entry in answer["errors"]}


def refused(given: dict[str, Any], model: str = TEXT) -> dict[str, str]:
    needed = {"prompt": "a cat"} | ({"image_urls": [PICTURE]} if model == EDIT else {})
    return refusals({"input": needed | given}, model)


def requested(given: dict[str, Any], model: str = TEXT, **more: Any) -> ImageRequest:
    run = parsed(given, model)
    return image_request(
        run,
        RULES[model].card,
        more.pop("references", [("id", 640, 480)] * len(run.images)),
        acceleration=Acceleration.NONE,
        can_check_safety=more.pop("can_check_safety", True),
        metadata=True,
        draw_seed=lambda limit: 41,
    )


# field: types it takes, values at and inside its bounds, values refused with their kind
FIELDS: dict[str, tuple[set[str], list[Any], list[tuple[Any, str]]]] = {
    "prompt": ({"string"}, ["", "ä猫🐈", "x" * 32_000], [("x" * 32_001, "length")]),
    "image_size": (
        {"string", "object"},
        [*PRESETS, {"width": 128, "height": 2048}],
        [
            ("square_xl", "enum"),
            ("", "enum"),
            ("Square", "enum"),
        ],
    ),
    "num_images": ({"integer"}, [1, 4, 2.0], [(0, "range"), (5, "range"), (-1, "range"), (2**70, "range")]),
    "num_inference_steps": ({"integer"}, [1, 50, 4.0], [(0, "range"), (51, "range")]),
    "steps": ({"integer"}, [1, 50], [(0, "range"), (51, "range")]),
    "seed": (
        {"integer"},
        [0, 1, 2**32, 2**53 - 1, MAX_SEED, MAX_SEED + 1, -1, -(2**70), 1e300],
        [],
    ),
    "guidance_scale": ({"integer", "fraction"}, [0, 0.0, 2.5, 20], [(-0.1, "range"), (20.1, "range")]),
    "output_format": ({"string"}, ["jpeg", "png", "webp"], [("jpg", "enum"), ("PNG", "enum"), ("gif", "enum")]),
    "enable_safety_checker": ({"boolean"}, [True, False], []),
    "sync_mode": ({"boolean"}, [True, False], []),
}


@pytest.mark.parametrize("model", [TEXT, EDIT, FLEX])
@pytest.mark.parametrize(("field", "kind"), [(f, kind) for f in FIELDS for kind in UNFIT if kind not in FIELDS[f][0]])
def test_a_value_of_another_type_is_refused(model: str, field: str, kind: str) -> None:
    assert refused({field: UNFIT[kind]}, model) == {f"input.{field}": "type"}


@pytest.mark.parametrize("model", [TEXT, EDIT])
@pytest.mark.parametrize(("field", "value"), [(field, value) for field in FIELDS for value in FIELDS[field][1]])
def test_values_up_to_the_edges_pass(model: str, field: str, value: object) -> None:
    assert parsed({field: value}, model)


@pytest.mark.parametrize("model", [TEXT, EDIT])
@pytest.mark.parametrize(
    ("field", "value", "kind"), [(field, value, kind) for field in FIELDS for value, kind in FIELDS[field][2]]
)
def test_values_beyond_the_edges_are_refused(model: str, field: str, value: object, kind: str) -> None:
    assert refused({field: value}, model) == {f"input.{field}": kind}


@pytest.mark.parametrize("field", [field for field in FIELDS if field != "prompt"])
def test_every_field_but_the_prompt_may_be_missing_or_null(field: str) -> None:
    assert parsed({field: None}) == parsed({}).__class__(
        **{name: getattr(parsed({}), name) for name in RunBody.__struct_fields__ if name != "input"},
        input={"prompt": "a cat", field: None},
    )


@pytest.mark.parametrize("given", [{}, {"prompt": None}])
def test_a_missing_prompt_is_refused(given: dict[str, Any]) -> None:
    assert refusals({"input": given}) == {"input.prompt": "missing"}


@pytest.mark.parametrize("body", [{}, {"input": None}])
def test_a_missing_input_is_refused(body: dict[str, Any]) -> None:
    assert refusals(body) == {"input": "missing"}


@pytest.mark.parametrize("value", ["text", 7, True, [], [{"prompt": "a cat"}]])
def test_an_input_that_is_no_object_is_refused(value: object) -> None:
    assert refusals({"input": value}) == {"input": "type"}


def test_all_violations_are_told_at_once() -> None:
    found = refused({"num_images": 9, "output_format": "jpg", "seed": "x"})
    assert found == {"input.num_images": "range", "input.output_format": "enum", "input.seed": "type"}


ENVELOPE: list[tuple[str, object, str]] = [
    ("callback_url", 7, "type"),
    ("callback_url", "your-server.com/webhook", "format"),
    ("callback_url", "ftp://example.com/", "format"),
    ("callback_url", "https://", "format"),
    ("callback_url", "https://example.com:99999/", "format"),
    ("callback_url", "https://example.com/" + "x" * 2048, "length"),
    ("metadata", "text", "type"),
    ("metadata", [1], "type"),
    ("metadata", {"x": "y" * 16_384}, "length"),
    ("client_ref", 7, "type"),
    ("client_ref", "x" * 256, "length"),
]


@pytest.mark.parametrize(("field", "value", "kind"), ENVELOPE)
def test_the_envelope_is_checked(field: str, value: object, kind: str) -> None:
    assert refusals({"input": {"prompt": "a cat"}, field: value}) == {field: kind}


def test_the_envelope_is_kept() -> None:
    metadata = {"job": 42, "nested": {"a": [None, 1.5]}}
    url = "https://example.com/" + "x" * (2048 - 20)
    run = parsed({}, callback_url=url, metadata=metadata, client_ref="x" * 255)
    assert (run.callback_url, run.metadata, run.client_ref) == (url, metadata, "x" * 255)
    nothing = parsed({}, callback_url=None, metadata=None, client_ref=None, something="else")
    assert (nothing.callback_url, nothing.metadata, nothing.client_ref) == (None, None, None)


@pytest.mark.parametrize("tail", ["?name=é", "?x=a b", "?id={id}", "?id=a|b"])
def test_a_callback_that_can_be_called_is_taken(tail: str) -> None:
    for host in ("example.com", "münchen.example"):
        assert parsed({}, callback_url=f"https://{host}/hook{tail}").callback_url == f"https://{host}/hook{tail}"


# Sizes


@pytest.mark.parametrize(("preset", "size"), PRESETS.items())
def test_presets_in_pixels(preset: str, size: tuple[int, int]) -> None:
    request = requested({"image_size": preset})
    assert (request.width, request.height) == size


def test_the_default_size_is_landscape_4_3() -> None:
    assert parsed({}).size == (1024, 768)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"width": 512, "height": 768}, (512, 768)),
        ({"image_size": {"width": 640, "height": 480}}, (640, 480)),
        ({"image_size": "square", "width": 1024, "height": 512}, (1024, 512)),
        ({"image_size": {"width": 640, "height": 480}, "width": 1024, "height": 512}, (1024, 512)),
        ({"width": 1000, "height": 1001}, (1008, 1008)),
        ({"width": 1031, "height": 1032}, (1024, 1040)),
        ({"width": 128, "height": 2048}, (128, 2048)),
        ({"width": 2041, "height": 2040}, (2048, 2048)),
    ],
)
def test_custom_sizes(given: dict[str, Any], size: tuple[int, int]) -> None:
    request = requested(given)
    assert (request.width, request.height) == size


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"width": 127, "height": 512}, {"input.width": "range"}),
        ({"width": 2049, "height": 512}, {"input.width": "range"}),
        ({"width": 512, "height": 127}, {"input.height": "range"}),
        ({"width": 512, "height": 2049}, {"input.height": "range"}),
        ({"width": "512", "height": 512}, {"input.width": "type"}),
        ({"width": 512.5, "height": 512}, {"input.width": "type"}),
        ({"width": 512}, {"input.width": "missing", "input.height": "missing"}),
        ({"height": 512}, {"input.width": "missing", "input.height": "missing"}),
        ({"image_size": {"width": 127, "height": 512}}, {"input.image_size.width": "range"}),
        ({"image_size": {"width": 512, "height": "x"}}, {"input.image_size.height": "type"}),
        ({"image_size": {"width": 512}}, {"input.image_size.height": "missing"}),
        ({"image_size": {}}, {"input.image_size.width": "missing", "input.image_size.height": "missing"}),
    ],
)
def test_custom_sizes_that_are_refused(given: dict[str, Any], found: dict[str, str]) -> None:
    assert refused(given) == found


# References


def test_edit_needs_pictures() -> None:
    assert refusals({"input": {"prompt": "a hat"}}, EDIT) == {
        "input.image_urls": "missing",
        "input.image_url": "missing",
    }


def test_one_picture_may_be_called_image_url() -> None:
    run = parse_run(RULES[EDIT], {"input": {"prompt": "a hat", "image_url": PICTURE}})
    assert (run.images, run.image_field) == ((PICTURE,), "input.image_url")


@pytest.mark.parametrize("field", ["image_urls", "image_url"])
def test_pictures_on_the_plain_model_are_refused_not_ignored(field: str) -> None:
    value = [PICTURE] if field == "image_urls" else PICTURE
    assert refused({field: value}) == {f"input.{field}": "conflict"}


@pytest.mark.parametrize(
    ("urls", "found"),
    [
        ([], {"input.image_urls": "length"}),
        ([PICTURE] * 5, {"input.image_urls": "length"}),
        (PICTURE, {"input.image_urls": "type"}),
        ([7], {"input.image_urls[0]": "type"}),
        ([PICTURE, "ftp://example.com/a.png"], {"input.image_urls[1]": "format"}),
        (["s3://bucket/a.png"], {"input.image_urls[0]": "format"}),
        (["file:///etc/passwd"], {"input.image_urls[0]": "format"}),
        (["/etc/passwd"], {"input.image_urls[0]": "format"}),
        (["c0ffee00-0000-4000-8000-000000000000"], {"input.image_urls[0]": "format"}),
        (["runflow://assets/nothing"], {"input.image_urls[0]": "format"}),
        ([""], {"input.image_urls[0]": "format"}),
    ],
)
def test_what_image_urls_may_not_be(urls: object, found: dict[str, str]) -> None:
    assert refused({"image_urls": urls}, EDIT) == found


@pytest.mark.parametrize(
    "url",
    [
        PICTURE,
        "HTTP://example.com/a.png",
        "data:image/png;base64,aGk=",
        "runflow://assets/c0ffee00-0000-4000-8000-000000000000",
    ],
)
def test_what_image_urls_may_be(url: str) -> None:
    assert parsed({"image_urls": [url] * 4}, EDIT).images == (url,) * 4


@pytest.mark.parametrize("field", ["image_urls", "image_url"])
def test_a_refused_scheme_is_named(field: str) -> None:
    with pytest.raises(Rejected, match=r"scheme gopher; an HTTP\(S\) URL, a data URI"):
        parse_run(RULES[EDIT], {"input": {"prompt": "x", field: ["gopher://a"] if field[-1] == "s" else "gopher://a"}})


@pytest.mark.parametrize(
    ("reference", "size"),
    [
        ((640, 480), (640, 480)),
        ((1000, 999), (1008, 992)),
        ((4096, 2048), (2048, 1024)),
        ((3000, 3000), (2048, 2048)),
        ((64, 64), (128, 128)),
        ((8000, 100), (2048, 128)),
    ],
)
def test_without_a_size_an_edit_takes_that_of_its_first_picture(
    reference: tuple[int, int], size: tuple[int, int]
) -> None:
    request = requested({"image_urls": [PICTURE] * 2}, EDIT, references=[("one", *reference), ("two", 64, 64)])
    assert (request.width, request.height) == size
    assert request.references == ("one", "two")


def test_a_size_beats_that_of_the_picture() -> None:
    request = requested({"image_size": "square"}, EDIT)
    assert (request.width, request.height) == (512, 512)


@pytest.mark.parametrize("card", CATALOG.cards, ids=lambda card: card.slug)
def test_sizes_always_fit_the_card(card: Any) -> None:
    for width, height in [(1, 1), (1, 9999), (9999, 1), (1023, 1025), (2048, 2048)]:
        fitted = fit_size(card, width, height)
        for side, name in zip(fitted, ("width", "height"), strict=True):
            assert side % 16 == 0
            assert card.parameters[name].min <= side <= card.parameters[name].max


# What it becomes


def test_defaults() -> None:
    request = requested({})
    assert request == ImageRequest(
        card="runware:400@4",
        prompt="a cat",
        width=1024,
        height=768,
        steps=4,
        seed=41,
        check_safety=True,
        hide_unsafe=True,
        output=request.output,
    )
    assert request.output.format is ImageFormat.PNG
    assert requested({"image_urls": ["https://example.com/a.png"]}, EDIT).output.format is ImageFormat.JPEG


def test_any_number_is_a_seed_and_always_the_same_one() -> None:
    assert [requested({"seed": seed}).seed for seed in (-1, -1, 7, MAX_SEED, MAX_SEED + 1)] == [
        2**32 - 1, 2**32 - 1, 7, MAX_SEED, 0,
    ]  # fmt: skip


def test_a_wrong_size_is_told_both_forms() -> None:
    for size in ("1024x768", [1024, 768]):
        with pytest.raises(Rejected, match='"width": 1024, "height": 768'):
            parsed({"image_size": size})


def test_num_inference_steps_wins_over_steps() -> None:
    assert requested({"steps": 9}).steps == 9
    assert requested({"steps": 9, "num_inference_steps": 7}).steps == 7


def test_steps_and_guidance_are_those_of_the_card() -> None:
    card, model = CATALOG.resolve_runflow(FLEX)
    replace = msgspec.structs.replace
    steps = replace(card.parameters["steps"], min=2, max=20)
    card = replace(
        card,
        parameters=card.parameters | {"steps": steps},
        defaults=replace(card.defaults, steps=12, cfg_scale=4.0),
    )
    own = ModelRules(card, model)
    assert {"minimum": 2, "maximum": 20, "default": 12}.items() <= own.properties["num_inference_steps"].items()
    assert {"minimum": 2, "maximum": 20}.items() <= own.properties["steps"].items()
    assert own.properties["guidance_scale"]["default"] == 4.0
    for given in ({"steps": 1}, {"num_inference_steps": 21}):
        with pytest.raises(Rejected):
            parse_run(own, {"input": {"prompt": "a cat", **given}})
    run = parse_run(own, {"input": {"prompt": "a cat"}})
    request = image_request(run, card, [], acceleration=Acceleration.NONE, can_check_safety=True, metadata=True)
    assert (request.steps, request.guidance) == (12, 4.0)


@pytest.mark.parametrize(
    ("model", "given", "guidance"),
    [(TEXT, {"guidance_scale": 9}, 1.0), (FLEX, {}, 2.5), (FLEX, {"guidance_scale": 9}, 9.0)],
)
def test_guidance_counts_where_the_model_has_it(model: str, given: dict[str, Any], guidance: float) -> None:
    request = requested(given, model)
    assert (request.guidance, request.cfg_scale) == (guidance, 1.0)


def test_safety_is_checked_only_when_asked_for_and_installed() -> None:
    assert requested({}).check_safety
    assert not requested({"enable_safety_checker": False}).check_safety
    assert not requested({}, can_check_safety=False).check_safety


def test_fields_nobody_knows_are_ignored_and_noted() -> None:
    run = parsed({"strength": 0.5, "loras": [], "absent": None})
    assert run.ignored == ("strength", "loras")


# Bodies


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"7",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b"[" * 9999,
    ],
)
def test_a_body_that_is_no_json_object(data: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        read_json(data)
    answer = flat(caught.value)
    assert answer.status_code == 400
    assert read_json(bytes(answer.body))["code"] == "BAD_REQUEST"
