"""The playground as a person uses it, in a real browser against a real server."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import time
import uuid
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.live import LiveServer

AXE = (files("axe_playwright_python") / "axe.min.js").read_text()
FINISHED = 60_000
NOTE = "Above 512 pixels the embedded model draws the picture smaller and enlarges it."


def generate(page: Page, prompt: str) -> None:
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Generate").click()


def small(page: Page, width: int = 128, height: int = 128) -> None:
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()  # the form has its model's values
    page.get_by_label("Width in pixels").fill(str(width))
    page.get_by_label("Height in pixels").fill(str(height))


def wait_for_picture(page: Page, prompt: str) -> None:
    expect(page.locator("figure img.large")).to_have_attribute("alt", prompt, timeout=FINISHED)
    assert page.locator("figure img.large").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def wait_for_routes(page: Page, held: list[Route], count: int = 1) -> None:
    deadline = time.monotonic() + FINISHED / 1000
    while len(held) < count:
        assert time.monotonic() < deadline, "the page did not ask"
        page.wait_for_timeout(20)


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def drop_picture(page: Page, address: str, name: str) -> None:
    """A picture of the server, saved and dropped on the page."""
    page.evaluate(
        """async ([address, name]) => {
            const blob = await (await fetch(address)).blob();
            const files = new DataTransfer();
            files.items.add(new File([blob], name, {type: blob.type}));
            document.body.dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: files}));
        }""",
        [address, name],
    )


def shown_task(page: Page) -> dict[str, object]:
    """The form as the code tab sends it."""
    page.get_by_role("button", name="Code", exact=True).click()
    program = page.get_by_label("Program").text_content() or ""
    task: dict[str, object] = json.loads(program.partition("<<'EOF'\n")[2].partition("\nEOF")[0])[0]
    return task


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (160, 128), colour).save(file, "PNG")
    return file.getvalue()


def test_first_picture_within_three_clicks(page: Page, server: LiveServer) -> None:
    page.goto(server.url)
    page.get_by_role("button", name="Example").click()
    page.get_by_role("button", name="Generate").click()
    wait_for_picture(page, "a red circle above a blue square")
    facts = page.locator(".facts")
    expect(facts).to_contain_text("Seed")
    expect(facts).to_contain_text("denoise")


def test_demo_mode_names_the_command_that_installs_weights(page: Page, server: LiveServer) -> None:
    page.goto(server.url)
    expect(page.locator("#demo")).to_contain_text("darkroom pull")


def test_pictures_chosen_before_the_models_are_known_are_kept(page: Page, server: LiveServer) -> None:
    held: list[Route] = []
    page.route("**/schema", lambda route: held.append(route))
    page.goto(server.url)
    wait_for_routes(page, held)
    file = {"name": "orange.png", "mimeType": "image/png", "buffer": picture("orange")}
    page.locator("#reference-file").set_input_files([file])
    expect(page.locator(".references li")).to_have_count(1)
    for route in held:
        route.continue_()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    expect(page.locator("#references .hint").first).to_contain_text("1 of")
    expect(page.locator(".references li")).to_have_count(1)


def test_edit_with_two_references(page: Page, server: LiveServer) -> None:
    page.goto(server.url)
    files = [
        {"name": f"{colour}.png", "mimeType": "image/png", "buffer": picture(colour)} for colour in ("orange", "navy")
    ]
    page.locator("#reference-file").set_input_files(files)
    expect(page.locator(".references li")).to_have_count(2)
    expect(page.locator(".references")).to_contain_text("image 2")
    page.get_by_label("Move image 2 to the front").click()
    expect(page.locator(".references img").first).to_have_attribute("alt", "Image 1: navy.png")
    small(page)
    generate(page, "put image 1 behind image 2")
    wait_for_picture(page, "put image 1 behind image 2")


def test_result_becomes_a_reference(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    generate(page, "a first picture")
    wait_for_picture(page, "a first picture")
    page.get_by_role("button", name="Use as reference").click()
    expect(page.locator(".references li")).to_have_count(1)
    generate(page, "a second picture")
    wait_for_picture(page, "a second picture")


def test_cancel_in_mid_run(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    page.locator("#field-steps").fill("40")
    generate(page, "never to be seen [slow 300]")
    expect(page.locator(".running .words")).to_contain_text(re.compile(r"step ([2-9]|\d\d) of 40"))
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator(".running")).to_have_count(0)
    expect(page.locator("#toast")).to_have_text("Cancelled.")


def test_previews_appear_between_steps(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    page.locator("#field-steps").fill("20")
    generate(page, "slowly [slow 200]")
    expect(page.locator(".running .frame img[alt^='Preview']")).to_be_visible()
    wait_for_picture(page, "slowly [slow 200]")


def test_refusal_appears_at_its_field(page: Page, server: LiveServer) -> None:
    page.goto(server.url)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    page.locator("#field-steps").fill("99")
    generate(page, "a red circle")
    message = page.locator("[id='field-steps-error']")
    expect(message).to_be_visible()
    expect(message).to_contain_text("50")
    expect(page.locator("#field-steps")).to_be_focused()
    page.locator("#field-steps").fill("4")
    expect(message).to_be_hidden()


def test_empty_prompt_is_asked_for(page: Page, server: LiveServer) -> None:
    page.goto(server.url)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#prompt-error")).to_have_text("Describe the picture first.")


def test_reload_in_mid_run_picks_the_task_up_again(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    page.locator("#field-steps").fill("20")
    generate(page, "kept over a reload [slow 300]")
    expect(page.locator(".running .words")).to_contain_text("step")
    page.reload()
    expect(page.locator(".running")).to_have_count(1)
    wait_for_picture(page, "kept over a reload [slow 300]")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("kept over a reload [slow 300]")


def test_server_restart_in_mid_run_loses_nothing(page: Page, tmp_path: Path) -> None:
    with LiveServer(tmp_path / "data", engine="fake") as server:
        page.goto(server.url)
        small(page)
        page.locator("#field-steps").fill("10")
        generate(page, "survives a kill [slow 200]")
        expect(page.locator(".running .words")).to_contain_text("step")
        server.kill()
        server.start()
        wait_for_picture(page, "survives a kill [slow 200]")


def test_gallery_restores_how_a_picture_was_made(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page, 192, 128)
    page.locator("#field-steps").fill("7")
    page.locator("#seed-value").fill("4711")
    generate(page, "an unmistakable gallery picture")
    wait_for_picture(page, "an unmistakable gallery picture")
    page.get_by_label("Prompt", exact=True).fill("something else")
    page.locator("#field-steps").fill("3")
    page.locator("#seed-value").fill("")
    page.get_by_role("button", name="Gallery").click()
    page.get_by_label("Search prompts").fill("unmistakable")
    expect(page.locator("#gallery .tile")).to_have_count(1)
    page.locator("#gallery .tile").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("an unmistakable gallery picture")
    expect(page.locator("#field-steps")).to_have_value("7")
    expect(page.locator("#seed-value")).to_have_value("4711")
    expect(page.get_by_label("Width in pixels")).to_have_value("192")


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_dropping_a_picture_restores_its_settings(page: Page, slow_server: LiveServer, extension: str) -> None:
    page.goto(slow_server.url)
    small(page)
    page.locator("#form summary", has_text="Output").click()
    page.get_by_label("Output format").select_option(extension.upper())
    page.locator("#seed-value").fill("99")
    generate(page, f"carries its settings as {extension}")
    wait_for_picture(page, f"carries its settings as {extension}")
    address = page.locator("figure img.large").get_attribute("src")
    page.get_by_label("Prompt", exact=True).fill("something else")
    page.locator("#seed-value").fill("")
    drop_picture(page, address or "", f"picture.{extension}")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(f"carries its settings as {extension}")
    expect(page.locator("#seed-value")).to_have_value("99")


def test_a_dropped_picture_restores_every_setting(page: Page, slow_server: LiveServer) -> None:
    """Caches, faces, safety and how long it is kept, too; not where it was delivered to."""
    given = {
        "model": "runware:400@5",
        "positivePrompt": "dropped with everything",
        "negativePrompt": "blurry",
        "steps": 12,
        "seed": 12,
        "CFGScale": 1,
        "ttl": 600,
        "acceleration": "none",
        "acceleratorOptions": {"teaCache": True, "teaCacheDistance": 0.25, "cacheStartStep": 2, "cacheEndStep": 9},
        "outputFormat": "PNG",
    }
    address = finished_task(slow_server, **given, webhookURL="http://127.0.0.1:9/hook")
    page.goto(slow_server.url)
    small(page)
    drop_picture(page, address, "picture.png")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("dropped with everything")
    shown = shown_task(page)
    assert given.items() <= shown.items()
    assert "webhookURL" not in shown


def test_code_tab_gives_a_curl_line_that_works(page: Page, server: LiveServer) -> None:
    needs("curl")
    page.goto(server.url)
    small(page)
    page.get_by_label("Prompt", exact=True).fill('it\'s a "quoted" red circle')
    page.get_by_role("button", name="Code").click()
    for dialect in ("Runware", "Runflow"):
        page.get_by_role("button", name=dialect).click()
        page.get_by_role("button", name="curl").click()
        program = page.get_by_label("Program").text_content() or ""
        command = program.replace("curl -sS", "curl -sS -w '\\n%{http_code}'")
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
        answer, _, status = done.stdout.rpartition("\n")
        assert status in ("200", "201"), answer
        assert "http" in json.dumps(json.loads(answer))


@pytest.mark.parametrize("language", ["Python", "JavaScript"])
@pytest.mark.parametrize("dialect", ["Runware", "Runflow"])
def test_code_tab_programs_run(
    page: Page, slow_server: LiveServer, tmp_path: Path, dialect: str, language: str
) -> None:
    page.goto(slow_server.url)
    small(page)
    page.get_by_label("Prompt", exact=True).fill('a "quoted" prompt with true, null and \\ in it')
    page.get_by_role("button", name="Code").click()
    page.get_by_role("button", name=dialect).click()
    page.get_by_role("button", name=language).click()
    file = tmp_path / ("program.py" if language == "Python" else "program.mjs")
    file.write_text(page.get_by_label("Program").text_content() or "")
    interpreter = sys.executable if language == "Python" else "node"
    needs(interpreter)
    done = subprocess.run([interpreter, str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "/ii/" in done.stdout


def test_keyboard_alone_makes_a_picture(page: Page, server: LiveServer) -> None:
    page.goto(server.url)
    expect(page.locator("#connection")).to_have_class("on")
    page.keyboard.press("Tab")  # the skip link
    page.keyboard.press("Enter")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type("a green triangle")
    page.keyboard.press("Control+Enter")
    wait_for_picture(page, "a green triangle")


def test_switching_models_keeps_what_fits(page: Page, server: LiveServer) -> None:
    page.goto(server.url)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    page.get_by_label("Model", exact=True).select_option("runware:400@5")
    page.locator("#field-negativePrompt").fill("blue")
    page.locator("#field-steps").fill("12")
    page.get_by_label("Model", exact=True).select_option("bfl:6@1")
    expect(page.locator("#field-steps")).to_have_value("12")
    expect(page.locator("[id='field-negativePrompt']")).to_have_count(0)
    expect(page.locator("[id='field-providerSettings.bfl.promptUpsampling']")).to_have_count(1)


def test_several_results_and_compare(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    page.locator("#field-numberResults").fill("3")
    generate(page, "three at once")
    wait_for_picture(page, "three at once")
    expect(page.locator("#strip .tile")).to_have_count(3)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_label("How much of the first picture is shown")).to_be_visible()
    page.get_by_role("button", name="Back to one picture").click()
    page.get_by_role("button", name="Grid").click()
    expect(page.locator("#viewer .grid .tile")).to_have_count(3)


def test_page_talks_to_its_own_server_only(page: Page, server: LiveServer) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    expect(page.locator("#connection")).to_have_class("on")
    assert asked
    assert all(address.startswith((server.url, "data:", "blob:")) for address in asked), asked


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("view", ["Make", "Gallery", "Code"])
def test_accessibility(page: Page, slow_server: LiveServer, theme: str, view: str) -> None:
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    page.goto(slow_server.url)
    small(page)
    generate(page, "for the accessibility check")
    wait_for_picture(page, "for the accessibility check")
    page.get_by_role("button", name=view, exact=True).click()
    for summary in page.locator("summary").all():
        summary.click()
    page.evaluate(AXE)  # not a script element: the page's policy allows none but its own
    found = page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa']}).then(result => result.violations)")
    serious = [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] in ("serious", "critical")
    ]
    assert not serious, serious


# Tasks in flight


def test_many_tasks_leave_the_page_usable(page: Page, slow_server: LiveServer) -> None:
    """A browser opens six connections to a server; followed tasks must not take them all."""
    page.goto(slow_server.url)
    small(page)
    page.locator("#field-steps").fill("50")
    for index in range(8):
        generate(page, f"one of many {index} [slow 1000]")
        expect(page.locator(".running")).to_have_count(index + 1)
    page.locator(".running").first.get_by_role("button", name="Cancel").click()
    expect(page.locator(".running")).to_have_count(7)
    page.get_by_role("button", name="Cancel all").click()
    expect(page.locator(".running")).to_have_count(0)


def test_a_task_without_a_stream_ends_too(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    page.locator("#field-steps").fill("50")
    for index in range(2):
        generate(page, f"in the way {index} [slow 1000]")
    page.locator("#field-steps").fill("4")
    generate(page, "asked after")
    wait_for_picture(page, "asked after")
    page.get_by_role("button", name="Cancel all").click()
    expect(page.locator(".running")).to_have_count(0)


def test_a_task_that_is_asked_after_tells_its_place_in_the_queue(page: Page, tmp_path: Path) -> None:
    with LiveServer(tmp_path, engine="fake", concurrent_tasks="1") as server:
        page.goto(server.url)
        small(page)
        page.locator("#field-steps").fill("50")
        for index in range(4):  # one is worked on, one is followed while it waits, two are asked after
            generate(page, f"number {index} [slow 1000]")
        words = page.locator(".running .words")  # newest first
        expect(words.nth(0)).to_have_text("Waiting: 2 tasks ahead")
        expect(words.nth(1)).to_have_text("Waiting: 1 task ahead")
        expect(words.nth(2)).to_have_text("Next in line")
        page.locator(".running").nth(2).get_by_role("button", name="Cancel").click()
        expect(words.nth(0)).to_have_text("Waiting: 1 task ahead")
        page.get_by_role("button", name="Cancel all").click()
        expect(page.locator(".running")).to_have_count(0)


def test_the_card_is_there_before_the_server_answers(page: Page, slow_server: LiveServer) -> None:
    held: list[Route] = []
    page.goto(slow_server.url)
    small(page)
    page.route("**/v1", lambda route: held.append(route))
    page.get_by_label("Prompt", exact=True).fill("seen at once")
    page.keyboard.down("Control")
    page.keyboard.down("Enter")
    page.keyboard.down("Enter")  # held: the key repeats
    page.keyboard.up("Enter")
    page.keyboard.up("Control")
    expect(page.locator(".running .words")).to_have_text("Sending")
    wait_for_routes(page, held)
    page.wait_for_timeout(100)
    assert len(held) == 1
    held[0].fulfill(status=400, json={"errors": [{"message": "Not today.", "parameter": "steps"}]})
    expect(page.locator(".running")).to_have_count(0)
    expect(page.locator("[id='field-steps-error']")).to_have_text("Not today.")


def test_cancelled_while_it_is_being_sent(page: Page, slow_server: LiveServer) -> None:
    held: list[Route] = []
    page.goto(slow_server.url)
    small(page)
    page.locator("#field-steps").fill("50")
    page.route("**/v1", lambda route: held.append(route))
    generate(page, "second thoughts [slow 1000]")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator(".running .words")).to_have_text("Cancelling")
    wait_for_routes(page, held)
    held[0].continue_()
    expect(page.locator("#toast")).to_have_text("Cancelled.")
    expect(page.locator(".running")).to_have_count(0)


def test_an_unwell_server_is_told_and_outlived(page: Page, slow_server: LiveServer) -> None:
    page.route("**/events", lambda route: route.fulfill(status=503))
    page.goto(slow_server.url)
    small(page)
    generate(page, "patience")
    expect(page.locator(".running .words")).to_have_text("Connection lost. Trying again…")
    page.unroute("**/events")
    wait_for_picture(page, "patience")


# Keys


def want_key(page: Page, pattern: str = "**/v1/**") -> None:
    """The server as one with keys, whose only key is "right"."""

    def answer(route: Route) -> None:
        given = route.request.headers.get("authorization", "")
        if given == "Bearer right":
            route.continue_()
        else:
            message = "This API key is not valid here." if given else "An API key is needed."
            route.fulfill(status=401, json={"errors": [{"code": "UNAUTHORIZED", "message": message}]})

    page.route(pattern, answer)


def test_enter_in_the_key_dialog_uses_the_key(page: Page, server: LiveServer) -> None:
    want_key(page)
    page.goto(server.url)
    key, message = page.get_by_label("Key", exact=True), page.locator("#key-error")
    expect(key).to_be_focused()
    expect(message).to_be_hidden()
    key.fill("wrong")
    key.press("Enter")
    expect(message).to_have_text("This API key is not valid here.")
    expect(key).to_be_focused()
    key.fill("right")
    key.press("Enter")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_escape_closes_the_key_dialog_for_good(page: Page, server: LiveServer) -> None:
    page.clock.install()
    want_key(page)
    page.goto(server.url)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#connection")).to_have_text("Key needed")
    with page.expect_request("**/health"):
        page.clock.fast_forward(6_000)
    page.wait_for_timeout(200)
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("button", name="Key", exact=True).click()
    page.get_by_label("Key", exact=True).fill("right")
    page.get_by_role("button", name="Use this key").click()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_another_key_in_mid_run_keeps_one_card_and_the_form(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    page.locator("#field-steps").fill("50")
    generate(page, "one card only [slow 1000]")
    expect(page.locator(".running .words")).to_contain_text("step")
    page.get_by_label("Prompt", exact=True).fill("half a pro")
    page.get_by_role("button", name="Key", exact=True).click()
    with page.expect_response("**/schema"):
        page.get_by_role("button", name="Forget it").click()
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    expect(page.locator(".running")).to_have_count(1)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("half a pro")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator(".running")).to_have_count(0)


def test_a_key_that_is_revoked_in_mid_run_is_asked_for(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    want_key(page, "**/events")
    generate(page, "goes on with a key")
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.locator(".running .words")).to_have_text("Waiting for the key")
    page.get_by_label("Key", exact=True).fill("right")
    page.get_by_role("button", name="Use this key").click()
    wait_for_picture(page, "goes on with a key")


# What is sent, and sent again


def finished_task(server: LiveServer, **options: object) -> str:
    """A task of a client of the API; the address of its first picture."""
    task = {"taskType": "imageInference", "taskUUID": str(uuid.uuid4()), "width": 128, "height": 128} | options
    answer = httpx.post(f"{server.url}/v1", json=[task], timeout=60).raise_for_status()
    return str(answer.json()["data"][0]["imageURL"])


def test_a_task_of_the_api_comes_back_with_every_setting(page: Page, slow_server: LiveServer) -> None:
    given = {
        "model": "runware:400@1",
        "positivePrompt": "everything counts",
        "width": 512,
        "height": 512,
        "steps": 5,
        "seed": 12,
        "CFGScale": 2.5,
        "ttl": 600,
        "settings": {"trueCFGScale": 3},
        "acceleratorOptions": {"fbCache": True, "fbCacheThreshold": 0.4, "cacheMaxConsecutiveSteps": 2},
    }
    elsewhere = {"webhookURL": "http://127.0.0.1:9/hook", "uploadEndpoint": "http://127.0.0.1:9/put"}
    finished_task(slow_server, **given, **elsewhere)
    page.goto(slow_server.url)
    page.get_by_role("button", name="Gallery").click()
    page.get_by_label("Search prompts").fill("everything counts")
    expect(page.locator("#gallery .tile")).to_have_count(1)
    page.locator("#gallery .tile").click()
    expect(page.get_by_label("Model", exact=True)).to_have_value("runware:400@1")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("everything counts")
    shown = shown_task(page)
    assert given.items() <= shown.items()
    assert not elsewhere.keys() & shown.keys()

    page.get_by_role("button", name="Make", exact=True).click()
    page.get_by_label("Prompt", exact=True).fill("half a pro")
    with page.expect_request(lambda request: "deliveryMethod" in (request.post_data or "")) as sent:
        page.get_by_role("button", name="Same again, other seed").click()
    again = sent.value.post_data_json[0]
    del given["seed"]
    assert given.items() <= again.items()
    assert not {"seed", *elsewhere} & again.keys()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("half a pro")
    expect(page.locator(".running")).to_have_count(0)


def test_same_again_keeps_the_references(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    page.locator("#reference-file").set_input_files(
        [{"name": "orange.png", "mimeType": "image/png", "buffer": picture("orange")}]
    )
    generate(page, "an edit to repeat")
    wait_for_picture(page, "an edit to repeat")
    with page.expect_request(lambda request: "deliveryMethod" in (request.post_data or "")) as sent:
        page.get_by_role("button", name="Same again, other seed").click()
    assert re.fullmatch(r"[0-9a-f-]{36}", sent.value.post_data_json[0]["inputs"]["referenceImages"][0])
    expect(page.locator(".running")).to_have_count(0, timeout=FINISHED)
    page.get_by_role("button", name="Restore settings").click()
    expect(page.locator(".references img")).to_have_attribute("src", re.compile("^/ii/"))


@pytest.mark.parametrize("text", ["abc", "1e3", "-1", "9007199254740993"])
def test_a_seed_that_would_change_silently_is_refused(page: Page, server: LiveServer, text: str) -> None:
    page.goto(server.url)
    small(page)
    page.locator("#seed-value").fill(text)
    expect(page.locator("#seed-error")).to_be_visible()
    generate(page, "never sent")
    expect(page.locator("#seed-value")).to_be_focused()
    expect(page.locator("#seed-error")).to_be_visible()
    expect(page.locator(".running")).to_have_count(0)
    page.locator("#seed-value").fill("9007199254740991")
    expect(page.locator("#seed-error")).to_be_hidden()


def test_the_last_chosen_model_counts(page: Page, server: LiveServer) -> None:
    held: list[Route] = []
    page.goto(server.url)
    small(page)
    page.route("**/v1/cards/bfl*/schema", lambda route: held.append(route))
    model = page.get_by_label("Model", exact=True)
    model.select_option("bfl:6@1")
    expect(page.get_by_role("button", name="Generate")).to_be_disabled()
    model.select_option("runware:400@5")
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    wait_for_routes(page, held)
    held[0].continue_()
    page.wait_for_timeout(300)
    expect(model).to_have_value("runware:400@5")
    expect(page.locator("[id='field-providerSettings.bfl.promptUpsampling']")).to_have_count(0)


def test_a_model_that_cannot_be_shown_is_not_chosen(page: Page, server: LiveServer) -> None:
    page.goto(server.url)
    small(page)
    page.route("**/v1/cards/bfl*/schema", lambda route: route.abort())
    model = page.get_by_label("Model", exact=True)
    before = model.input_value()
    model.select_option("bfl:6@1")
    expect(page.locator("#toast")).to_contain_text("does not answer")
    expect(model).to_have_value(before)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()


def test_curl_sends_a_photo(page: Page, slow_server: LiveServer, tmp_path: Path) -> None:
    needs("curl")
    file = io.BytesIO()
    Image.effect_noise((400, 400), 90).save(file, "PNG")
    assert len(file.getvalue()) > 128 * 1024  # what Linux takes as one argument
    page.goto(slow_server.url)
    small(page)
    page.locator("#reference-file").set_input_files(
        [{"name": "noise.png", "mimeType": "image/png", "buffer": file.getvalue()}]
    )
    page.get_by_label("Prompt", exact=True).fill("it's a photo")
    page.get_by_role("button", name="Code", exact=True).click()
    program = tmp_path / "program.sh"
    program.write_text(page.get_by_label("Program").text_content() or "")
    done = subprocess.run(["bash", str(program)], capture_output=True, text=True, timeout=60)
    assert "imageURL" in done.stdout, done.stderr


# The gallery and the viewer


def test_gallery_asked_twice_shows_each_picture_once(page: Page, slow_server: LiveServer) -> None:
    finished_task(slow_server, model="runware:400@4", positivePrompt="shown once")
    held: list[Route] = []
    page.goto(slow_server.url)
    small(page)
    page.route("**/v1/tasks?**", lambda route: held.append(route))
    page.get_by_role("button", name="Gallery").dblclick()
    wait_for_routes(page, held, 2)
    for route in held:
        route.continue_()
    expect(page.locator("#gallery .tile").first).to_be_visible()
    page.wait_for_timeout(200)
    addresses = page.locator("#gallery img").evaluate_all("images => images.map(image => image.src)")
    assert len(addresses) == len(set(addresses))


def test_opening_a_picture_again_adds_it_once(page: Page, slow_server: LiveServer) -> None:
    for prompt in ("strip and first", "strip and second"):
        finished_task(slow_server, model="runware:400@4", positivePrompt=prompt)
    page.goto(slow_server.url)
    small(page)
    for prompt in ("strip and first", "strip and second", "strip and first"):
        page.get_by_role("button", name="Gallery").click()
        page.get_by_label("Search prompts").fill("strip and")
        expect(page.locator("#gallery .tile")).to_have_count(2)
        page.locator(f"#gallery .tile[title='{prompt}']").click()
        expect(page.get_by_label("Prompt", exact=True)).to_have_value(prompt)
    expect(page.locator("#strip .tile")).to_have_count(2)
    expect(page.locator("#strip [aria-current=true]")).to_have_attribute("title", "strip and first")


def test_gallery_looks_behind_failed_tasks(page: Page, slow_server: LiveServer) -> None:
    finished_task(slow_server, model="runware:400@4", positivePrompt="hidden treasure")
    for _ in range(25):
        httpx.post(
            f"{slow_server.url}/v1",
            json=[
                {"taskType": "imageInference", "taskUUID": str(uuid.uuid4()), "model": "runware:400@4", "steps": 1}
                | {"positivePrompt": "treasure [fail]", "width": 128, "height": 128}
            ],
            timeout=60,
        )
    page.goto(slow_server.url)
    small(page)
    page.get_by_role("button", name="Gallery").click()
    page.get_by_label("Search prompts").fill("treasure")
    expect(page.locator("#gallery .tile")).to_have_count(1)
    expect(page.locator("#gallery [role=status]")).to_be_empty()


def test_an_expired_picture_says_so(page: Page, slow_server: LiveServer) -> None:
    finished_task(slow_server, model="runware:400@4", positivePrompt="gone by now")
    page.route("**/ii/**", lambda route: route.fulfill(status=404))
    page.goto(slow_server.url)
    small(page)
    page.get_by_role("button", name="Gallery").click()
    page.get_by_label("Search prompts").fill("gone by now")
    tile = page.locator("#gallery .tile")
    expect(tile).to_have_count(1)  # the search is answered a moment after it was typed
    expect(tile).to_have_text("Expired")
    expect(tile).to_be_disabled()
    expect(page.get_by_role("button", name="Use as reference: gone by now")).to_be_hidden()


def test_pictures_of_different_sizes_are_compared_in_one_box(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page, 128, 256)
    generate(page, "upright")
    wait_for_picture(page, "upright")
    small(page, 512, 256)
    generate(page, "lying")
    wait_for_picture(page, "lying")
    page.get_by_role("button", name="Compare").click()
    boxes = [image.bounding_box() for image in page.locator(".pair img").all()]
    assert boxes[0] == boxes[1]
    assert boxes[0] and boxes[0]["width"] == pytest.approx(2 * boxes[0]["height"], rel=0.02)


def test_a_download_is_named_in_its_own_script(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    generate(page, "красный круг, 赤い丸!")
    wait_for_picture(page, "красный круг, 赤い丸!")
    expect(page.get_by_role("link", name="Download")).to_have_attribute("download", "красный-круг-赤い丸.jpg")


def test_a_long_prompt_leaves_the_rest_in_sight(page: Page, slow_server: LiveServer) -> None:
    prompt = "a very long story " * 60 + "w" * 300
    page.goto(slow_server.url)
    small(page)
    generate(page, prompt)
    wait_for_picture(page, prompt)
    caption = page.locator("figcaption")
    assert (caption.bounding_box() or {})["height"] < 80
    caption.locator("summary").click()
    assert (caption.bounding_box() or {})["height"] > 200
    page.get_by_role("button", name="History").click()
    entry = page.locator("#history-list li").first.bounding_box() or {}
    assert entry["height"] < 80
    assert page.locator("#history-list").evaluate("list => list.scrollWidth <= list.clientWidth")


# Dragging and references


def drop(page: Page, target: str, address: str) -> None:
    page.locator(target).evaluate(
        """(element, address) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.setData("text/uri-list", address);
            element.dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer}));
        }""",
        address,
    )


def test_a_picture_of_the_page_is_dragged_to_the_references(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    generate(page, "dragged")
    wait_for_picture(page, "dragged")
    address = page.locator("figure img.large").evaluate("image => image.src")
    drop(page, "#references fieldset", address)
    expect(page.locator(".references img")).to_have_attribute("src", re.compile("^/ii/"))
    page.get_by_role("button", name="Code", exact=True).click()
    program = page.get_by_label("Program").text_content() or ""
    assert Path(address).stem in program
    assert "/ii/" not in program


def test_text_is_dragged_within_the_prompt(page: Page, server: LiveServer) -> None:
    page.goto(server.url)
    stopped = """(element, kind) => {
        const dataTransfer = new DataTransfer();
        if (kind === "text") dataTransfer.setData("text/plain", "circle");
        else dataTransfer.items.add(new File(["x"], "x.txt"));
        return !element.dispatchEvent(new DragEvent("dragover", {bubbles: true, cancelable: true, dataTransfer}));
    }"""
    assert not page.locator("#prompt").evaluate(stopped, "text")
    assert page.locator("#prompt").evaluate(stopped, "file")


# Reloads


def test_what_is_typed_during_a_slow_reload_is_kept(page: Page, server: LiveServer) -> None:
    page.goto(server.url)
    small(page)
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("as it was")
    page.locator("#seed-value").fill("7")
    held: list[Route] = []
    page.route("**/v1/cards", lambda route: held.append(route))
    page.reload()
    prompt.fill("typed meanwhile")
    wait_for_routes(page, held)
    held[0].continue_()
    expect(page.locator("#seed-value")).to_have_value("7")
    expect(prompt).to_have_value("typed meanwhile")


def test_references_are_shown_after_a_reload(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    generate(page, "stays a reference")
    wait_for_picture(page, "stays a reference")
    page.get_by_role("button", name="Use as reference").click()
    page.get_by_label("Address of a reference image").fill("https://example.org/a.png")
    page.get_by_role("button", name="Add", exact=True).click()
    page.reload()
    expect(page.locator(".references li")).to_have_count(2)
    expect(page.locator(".references img")).to_have_attribute("src", re.compile("^/ii/"))
    expect(page.locator(".references .address")).to_have_text("https://example.org/a.png")


def test_large_references_do_not_cost_the_prompt(page: Page, server: LiveServer) -> None:
    page.goto(server.url)
    small(page)
    page.get_by_label("Prompt", exact=True).fill("written with care")
    large = {"name": "large.png", "mimeType": "image/png", "buffer": picture("orange") + bytes(6_000_000)}
    page.locator("#reference-file").set_input_files([large])
    expect(page.locator(".references li")).to_have_count(1)
    page.reload()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("written with care")
    expect(page.locator(".references li")).to_have_count(0)


# Messages


def test_errors_leave_when_they_are_over(page: Page, server: LiveServer) -> None:
    page.goto(server.url)
    small(page)
    page.locator("#loras summary").click()
    page.get_by_role("button", name="Add a LoRA").click()
    page.get_by_label("LoRA 1", exact=True).fill("air:none@1")
    generate(page, "a red circle")
    expect(page.locator("#lora-error")).to_be_visible()
    expect(page.get_by_label("LoRA 1", exact=True)).to_be_focused()
    page.get_by_label("LoRA 1", exact=True).fill("air:none@2")
    expect(page.locator("#lora-error")).to_be_hidden()


def test_a_server_that_answers_again_is_not_said_to_be_gone(page: Page, server: LiveServer) -> None:
    page.clock.install()
    page.goto(server.url)
    small(page)
    page.route("**/v1", lambda route: route.abort())
    generate(page, "into the void")
    expect(page.locator("#form-error")).to_contain_text("does not answer")
    page.clock.fast_forward(6_000)
    expect(page.locator("#toast")).to_have_text("Connected again.")
    expect(page.locator("#form-error")).to_be_hidden()


# For those who do not see the page, or do not use a mouse


def test_focus_is_never_lost(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    files = [{"name": f"{n}.png", "mimeType": "image/png", "buffer": picture("navy")} for n in range(2)]
    page.locator("#reference-file").set_input_files(files)
    page.get_by_label("Remove image 2").click()
    expect(page.get_by_label("Remove image 1")).to_be_focused()
    page.get_by_label("Remove image 1").press("Enter")
    expect(page.locator("#reference-file")).to_be_focused()
    outline = page.locator("label[for=reference-file]").evaluate("label => getComputedStyle(label).outlineStyle")
    assert outline == "solid"

    page.locator("#loras summary").click()
    for _ in range(2):
        page.get_by_role("button", name="Add a LoRA").click()
    page.get_by_label("Remove LoRA 1").click()
    expect(page.get_by_label("Remove LoRA 1")).to_be_focused()
    page.get_by_label("Remove LoRA 1").click()
    expect(page.get_by_role("button", name="Add a LoRA")).to_be_focused()

    page.locator("#field-steps").fill("50")
    generate(page, "soon cancelled [slow 1000]")
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator(".running")).to_have_count(0)
    expect(page.get_by_role("button", name="Generate")).to_be_focused()

    page.get_by_label("Height in pixels").fill("100")
    generate(page, "too small")
    expect(page.get_by_label("Height in pixels")).to_be_focused()


def test_focus_stays_at_the_picture(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    generate(page, "pressed again and again")
    wait_for_picture(page, "pressed again and again")
    again = page.get_by_role("button", name="Same again, other seed")
    for count in (2, 3):
        again.press("Enter")
        expect(page.locator("#strip img")).to_have_count(count)
        expect(again).to_be_focused()
    page.locator("#strip button").last.press("Enter")
    expect(page.locator("#strip button").last).to_be_focused()
    page.get_by_role("button", name="Compare").press("Enter")
    expect(page.get_by_label("How much of the first picture is shown")).to_be_focused()
    page.get_by_role("button", name="Back to one picture").press("Enter")
    expect(page.get_by_role("button", name="Copy", exact=True)).to_be_focused()
    page.get_by_role("button", name="Grid").press("Enter")
    expect(page.locator("#viewer .tile").first).to_be_focused()


def test_a_task_is_announced_at_its_start_and_end(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    page.evaluate(
        """() => {
            window.said = [];
            const note = (records) => records.forEach(({target}) => {
                const element = target.closest ? target : target.parentElement;
                const live = element.closest("[aria-live], [role=status], [role=alert]");
                if (live) window.said.push(live.textContent);
            });
            new MutationObserver(note).observe(document.body, {subtree: true, childList: true, characterData: true});
        }"""
    )
    page.locator("#field-steps").fill("30")
    generate(page, "a picture to hear of")
    wait_for_picture(page, "a picture to hear of")
    assert page.evaluate("window.said") == ["Started: a picture to hear of", "Ready: a picture to hear of"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_fields_have_visible_borders(page: Page, server: LiveServer, theme: str) -> None:
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    page.goto(server.url)
    small(page)
    colours = page.locator("#field-steps").evaluate(
        """field => [getComputedStyle(field).borderTopColor, getComputedStyle(field).backgroundColor,
            getComputedStyle(document.querySelector(".panel")).backgroundColor]"""
    )
    border, *around = [luminance(colour) for colour in colours]
    for other in around:
        assert (max(border, other) + 0.05) / (min(border, other) + 0.05) >= 3


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)]
    linear = [part / 12.92 if part <= 0.04 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_manual_is_a_click_away_and_dark_too(page: Page, server: LiveServer) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto(server.url)
    page.get_by_role("link", name="Manual").click()
    expect(page.get_by_role("heading", name="Darkroom")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light dark"
    page.get_by_role("link", name="Playground").click()
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()


# Small screens, and what is in sight


@pytest.mark.parametrize("screen", [1280, 390])
def test_what_the_embedded_model_enlarges_is_said_beside_the_size(
    page: Page, slow_server: LiveServer, screen: int
) -> None:
    page.set_viewport_size({"width": screen, "height": 844})
    page.goto(slow_server.url)
    note = page.locator("#size-note")
    for width, height, larger in ((512, 512, False), (528, 256, True), (256, 528, True), (512, 128, False)):
        small(page, width, height)
        expect(note).to_have_text(NOTE if larger else "")
        assert note.is_visible() is larger
    page.locator("#side").fill("1024")
    expect(note).to_be_visible()
    page.get_by_label("Width in pixels").fill("")
    page.get_by_label("Height in pixels").fill("")
    expect(note).to_be_hidden()
    page.locator("#size").get_by_role("button", name="1:1").click()
    assert page.locator("body").evaluate("body => body.scrollWidth") <= screen


def test_real_weights_draw_every_size(page: Page, slow_server: LiveServer) -> None:
    def real(route: Route) -> None:
        answer = route.fetch().json()
        route.fulfill(json=answer | {"demo": None, "items": [one | {"largest_side": None} for one in answer["items"]]})

    page.route("**/v1/cards", real)
    page.goto(slow_server.url)
    small(page, 1024, 1024)
    expect(page.locator("#size-note")).to_be_hidden()


def test_what_was_refused_is_in_sight(page: Page, server: LiveServer) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(server.url)
    small(page, 100, 128)
    generate(page, "too narrow")
    message = page.locator("#size .error")
    expect(message).to_contain_text("between 128 and 2048")
    expect(message).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize(("view", "first"), [("Gallery", "#gallery-search"), ("Code", "#copy-code")])
def test_a_view_is_in_sight_on_a_small_screen(page: Page, server: LiveServer, view: str, first: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(server.url)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    page.locator("#field-steps").scroll_into_view_if_needed()
    page.get_by_role("button", name=view, exact=True).click()
    expect(page.locator(first)).to_be_in_viewport(ratio=1)
    expect(page.get_by_label("Prompt", exact=True)).to_be_hidden()
    page.get_by_role("button", name="Make", exact=True).click()
    expect(page.get_by_label("Prompt", exact=True)).to_be_in_viewport(ratio=1)


def test_two_tasks_are_in_sight_on_a_small_screen(page: Page, slow_server: LiveServer) -> None:
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto(slow_server.url)
    small(page)
    page.locator("#field-steps").fill("50")
    for index in range(2):
        generate(page, f"one above the other {index} [slow 1000]")
    for words in page.locator(".running .words").all():
        expect(words).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="Cancel all").click()
    expect(page.locator(".running")).to_have_count(0)


def test_a_reload_keeps_the_pictures_of_this_page(page: Page, slow_server: LiveServer) -> None:
    finished_task(slow_server, model="runware:400@4", positivePrompt="somebody else's")
    page.goto(slow_server.url)
    small(page)
    for prompt in ("made first", "made second"):
        generate(page, prompt)
        wait_for_picture(page, prompt)
    page.reload()
    wait_for_picture(page, "made second")
    expect(page.locator("#strip img")).to_have_count(2)


def test_four_results_stand_in_one_row_while_they_develop(page: Page, slow_server: LiveServer) -> None:
    page.goto(slow_server.url)
    small(page)
    page.locator("#field-steps").fill("50")
    page.locator("#field-numberResults").fill("4")
    generate(page, "four at once [slow 1000]")
    expect(page.locator(".running .frame")).to_have_count(4)
    tops = page.locator(".running .frame").evaluate_all("frames => frames.map(frame => frame.offsetTop)")
    assert len(tops) == 4 and len(set(tops)) == 1
    page.locator(".running").get_by_role("button", name="Cancel").click()
    expect(page.locator(".running")).to_have_count(0)
