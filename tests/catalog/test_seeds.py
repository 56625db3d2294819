"""The three models with a page of their own, against the tables of those pages (typed here by hand, not generated)."""

from __future__ import annotations

import pytest

from darkroom.catalog.card import Parameter
from darkroom.catalog.catalog import load_catalog
from darkroom.catalog.normalise import read_or_default

CATALOG = load_catalog()
REQUIRED = {"required": True}
SEED = {"type": "integer", "min": 0, "max": 9223372036854776000}
PERCENT_STEP = {"type": "float", "min": 0, "max": 1, "step": 0.01}

SHARED = {  # on all three pages
    "taskType": {"type": "string", **REQUIRED, "value": "imageInference"},
    "taskUUID": {"type": "string", **REQUIRED, "format": "uuid"},
    "outputType": {"type": "string", "default": "URL", "choices": ("URL", "base64Data", "dataURI")},
    "outputFormat": {"type": "string", "default": "JPG", "choices": ("JPG", "PNG", "WEBP")},
    "outputQuality": {"type": "integer", "min": 20, "max": 99, "default": 95},
    "webhookURL": {"type": "string", "format": "uri"},
    "deliveryMethod": {"type": "string", "default": "sync", "choices": ("sync", "async")},
    "uploadEndpoint": {"type": "string", "format": "uri"},
    "safety.checkContent": {"type": "boolean", "default": False},
    "ttl": {"type": "integer", "min": 60},
    "includeCost": {"type": "boolean", "default": False},
    "numberResults": {"type": "integer", "min": 1, "max": 20, "default": 1},
    "seed": SEED,
}
KLEIN = {  # on both klein pages
    **SHARED,
    "acceleration": {"type": "string", "default": "high", "choices": ("none", "low", "medium", "high")},
    "acceleratorOptions": {"type": "object"},
    "acceleratorOptions.cacheEndStep": {"type": "integer", "min": 1},
    "acceleratorOptions.cacheEndStepPercentage": {"type": "integer", "min": 1, "max": 100},
    "acceleratorOptions.cacheMaxConsecutiveSteps": {"type": "integer", "min": 1, "max": 5, "default": 3},
    "acceleratorOptions.cacheStartStep": {"type": "integer", "min": 0},
    "acceleratorOptions.cacheStartStepPercentage": {"type": "integer", "min": 0, "max": 99},
    "acceleratorOptions.fbCache": {"type": "boolean", "default": False},
    "acceleratorOptions.fbCacheThreshold": {**PERCENT_STEP, "default": 0.25},
    "acceleratorOptions.teaCache": {"type": "boolean", "default": False},
    "acceleratorOptions.teaCacheDistance": {**PERCENT_STEP, "default": 0.5},
    "acceleratorOptions.dbCache": {"type": "boolean", "default": False},
    "acceleratorOptions.dbCacheThreshold": {**PERCENT_STEP, "default": 0.25},
    "acceleratorOptions.dbCacheSkipInterval": {"type": "integer", "min": 1, "default": 5},
    "inputs.referenceImages": {"type": "array", "items": "string", "min_items": 1, "max_items": 4},
    "positivePrompt": {"type": "string", **REQUIRED, "min_length": 1, "max_length": 10000},
    "width": {"type": "integer", **REQUIRED, "min": 128, "max": 2048, "step": 16},
    "height": {"type": "integer", **REQUIRED, "min": 128, "max": 2048, "step": 16},
    "scheduler": {"type": "string"},
    "CFGScale": {"type": "float", "min": 1, "max": 20, "step": 0.01, "default": 3.5},
    "lora": {"type": "array", "items": "object", "min_items": 1},
    "lora.model": {"type": "string", **REQUIRED},
    "lora.weight": {"type": "float", "min": -4, "max": 4, "step": 0.01, "default": 1},
    "lora.transformer": {"type": "string", "default": "both", "choices": ("high", "low", "both")},
}
FACES = {
    "CFGScale": {"type": "float", "min": 0, "max": 50, "step": 0.1, "default": 8},
    "confidence": {**PERCENT_STEP, "default": 0.9},
    "maskBlur": {"type": "integer", "min": 0, "max": 100, "default": 5},
    "maskPadding": {"type": "integer", "min": 0, "max": 20, "default": 5},
    "negativePrompt": {"type": "string"},
    "positivePrompt": {"type": "string"},
    "steps": {"type": "integer", "min": 1, "max": 100, "default": 20},
    "strength": {**PERCENT_STEP, "default": 0.3},
}
SAFETY_MODE = {"safety.mode": {"type": "string", "default": "none", "choices": ("none", "fast")}}

PAGES = {
    "runware:400@5": {
        **KLEIN,
        **SAFETY_MODE,
        "model": {"type": "string", **REQUIRED, "value": "runware:400@5"},
        "negativePrompt": {"type": "string", "min_length": 1, "max_length": 10000},
        "steps": {"type": "integer", "min": 1, "max": 50, "default": 28},
        "advancedFeatures.ultralytics": {"type": "object"},
        **{f"advancedFeatures.ultralytics.{name}": facts for name, facts in FACES.items()},
    },
    "runware:400@6": {
        **KLEIN,
        "model": {"type": "string", **REQUIRED, "value": "runware:400@6"},
        "negativePrompt": {"type": "string", "min_length": 2, "max_length": 3000},
        "steps": {"type": "integer", "min": 1, "max": 50, "default": 4},
        "ultralytics": {"type": "object"},
        "ultralytics.inpaintSize": {"type": "integer", "min": 128, "max": 2048, "default": 1024},
        **{f"ultralytics.{name}": facts for name, facts in FACES.items()},
    },
    "bfl:6@1": {
        **SHARED,
        **SAFETY_MODE,
        "model": {"type": "string", **REQUIRED, "value": "bfl:6@1"},
        "inputs.referenceImages": {"type": "array", "items": "string", "min_items": 1, "max_items": 10},
        "positivePrompt": {"type": "string", **REQUIRED, "min_length": 1, "max_length": 32000},
        "width": {"type": "integer", **REQUIRED, "min": 256, "max": 2048, "step": 16},
        "height": {"type": "integer", **REQUIRED, "min": 256, "max": 2048, "step": 16},
        "steps": {"type": "integer", "min": 1, "max": 50},
        "CFGScale": {"type": "float", "min": 1, "max": 20, "step": 0.01, "default": 2.5},
        "providerSettings.bfl.promptUpsampling": {"type": "boolean", "default": False},
        "providerSettings.bfl.safetyTolerance": {"type": "integer", "min": 0, "max": 6, "default": 2},
    },
}
FACTS = ("type", "items", "min", "max", "step", "default", "value", "format", "choices", "required")
LENGTHS = ("min_length", "max_length", "min_items", "max_items")
SCHEDULERS = """
DDIM|DDIMScheduler|DDPMScheduler|DEISMultistepScheduler|Default|DPM++|DPM++ 2M|DPM++ 2M Beta|DPM++ 2M Exponential|
DPM++ 2M Karras|DPM++ 2M SDE|DPM++ 2M SDE Beta|DPM++ 2M SDE Exponential|DPM++ 2M SDE Karras|DPM++ 2M SDE Uniform|
DPM++ 2M Uniform|DPM++ 3M|DPM++ 3M Beta|DPM++ 3M Exponential|DPM++ 3M Karras|DPM++ 3M SDE Uniform|DPM++ 3M Uniform|
DPM++ Beta|DPM++ Exponential|DPM++ Karras|DPM++ SDE|DPM++ SDE Beta|DPM++ SDE Exponential|DPM++ SDE Karras|
DPM++ Uniform|DPM++ Uniform Beta|DPM++ Uniform Exponential|DPM++ Uniform Karras|DPMSolverMultistepInverse|
DPMSolverMultistepScheduler|DPMSolverSinglestepScheduler|EDMDPMSolverMultistepScheduler|EDMEulerScheduler|Euler|
Euler a|Euler Beta|Euler DiscreteScheduler|Euler Exponential|Euler Karras|EulerAncestralDiscreteScheduler|
FlowMatchEulerDiscreteScheduler|Heun|HeunDiscreteScheduler|Heun Karras|IPNDMScheduler|IPNDM Uniform|
IPNDM Uniform Beta|IPNDM Uniform Exponential|IPNDM Uniform Karras|KDPM2AncestralDiscreteScheduler|
KDPM2DiscreteScheduler|LCM|LCMScheduler|LMS|LMSDiscreteScheduler|LMS Karras|PNDMScheduler|TCDScheduler|UniPC|
UniPC 2M|UniPC 2M Karras|UniPC 2M Uniform|UniPC 3M|UniPC 3M Karras|UniPC 3M Uniform|UniPC Karras|UniPC Uniform|
UniPC Uniform Beta|UniPC Uniform Exponential|UniPC Uniform Karras
""".replace("\n", "").split("|")


def facts(parameter: Parameter) -> dict[str, object]:
    given = {name: getattr(parameter, name) for name in (*FACTS, *LENGTHS)}
    return {name: value for name, value in given.items() if value is not None and value != ()}


@pytest.mark.parametrize("card", PAGES)
def test_the_card_has_exactly_the_parameters_of_its_page(card: str) -> None:
    documented = {name for name, p in CATALOG.resolve(card).parameters.items() if p.documented}
    assert documented == set(PAGES[card])


@pytest.mark.parametrize(("card", "name"), [(card, name) for card, page in PAGES.items() for name in page])
def test_every_fact_of_the_page_is_in_the_card(card: str, name: str) -> None:
    parameter = CATALOG.resolve(card).parameters[name]
    expected = {"required": False, **PAGES[card][name]}
    if name == "scheduler":
        assert list(parameter.choices[: len(SCHEDULERS)]) == SCHEDULERS  # our own come after the page's
        expected["choices"] = tuple(dict.fromkeys(parameter.choices))
    assert facts(parameter) == expected


def test_what_real_clients_send_beyond_the_pages_is_marked_as_such() -> None:
    extras = {name for name, p in CATALOG.resolve("runware:400@5").parameters.items() if not p.documented}
    assert extras == {"settings.trueCFGScale", "routing", "safety.tolerance", "safety.checkInputs"}


@pytest.mark.parametrize(
    ("card", "slug", "guidance", "steps", "cfg", "side", "references"),
    [
        ("runware:400@1", "bfl-flux-2-dev", "embedded", 28, 3.5, 512, 4),
        ("runware:400@2", "bfl-flux-2-klein-9b", "none", 4, 3.5, 128, 4),
        ("runware:400@3", "bfl-flux-2-klein-9b-base", "cfg", 28, 3.5, 128, 4),
        ("runware:400@4", "bfl-flux-2-klein-4b", "none", 4, 3.5, 128, 4),
        ("runware:400@5", "bfl-flux-2-klein-4b-base", "cfg", 28, 3.5, 128, 4),
        ("runware:400@6", "bfl-flux-2-klein-9b-kv", "none", 4, 3.5, 128, 4),
        ("bfl:6@1", "bfl-flux-2-flex", "embedded", 28, 2.5, 256, 10),
    ],
)
def test_siblings(card: str, slug: str, guidance: str, steps: int, cfg: float, side: int, references: int) -> None:
    found = CATALOG.resolve(card)
    assert (found.slug, found.guidance, found.defaults.steps, found.defaults.cfg_scale) == (slug, guidance, steps, cfg)
    assert found.parameters["width"].min == found.parameters["height"].min == side
    assert found.parameters["inputs.referenceImages"].max_items == found.references.max_count == references
    assert found.kv_references == (card == "runware:400@6")
    assert read_or_default(found, {}, "CFGScale") == cfg


@pytest.mark.parametrize(
    ("path", "card", "edit"),
    [
        ("black-forest-labs/flux-2-klein-4b", "runware:400@4", False),
        ("black-forest-labs/flux-2-klein-4b/edit", "runware:400@4", True),
        ("black-forest-labs/flux-2-klein-9b", "runware:400@2", False),
        ("black-forest-labs/flux-2-klein-9b/edit", "runware:400@2", True),
        ("black-forest-labs/flux-2-flex", "bfl:6@1", True),
    ],
)
def test_runflow_names(path: str, card: str, edit: bool) -> None:
    found, model = CATALOG.resolve_runflow(path)
    assert (found.id, model.edit) == (card, edit)


@pytest.mark.parametrize(
    ("card", "licence", "gated", "gigabytes"),
    [
        ("runware:400@1", "FLUX non-commercial licence", True, 112.6),
        ("runware:400@2", "FLUX non-commercial licence", True, 34.7),
        ("runware:400@4", "Apache-2.0", False, 16.0),
        ("runware:400@5", "Apache-2.0", False, 16.0),
    ],
)
def test_licences_and_sizes(card: str, licence: str, gated: bool, gigabytes: float) -> None:
    weights = CATALOG.resolve(card).weights
    assert (weights.licence, weights.gated) == (licence, gated)
    assert weights.bytes == pytest.approx(gigabytes * 1e9, rel=0.01)
