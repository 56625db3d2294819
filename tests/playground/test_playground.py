"""The playground as a person uses it, in a real browser against a real server."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.live import LiveServer

AXE = (files("axe_playwright_python") / "axe.min.js").read_text()
FINISHED = 60_000


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
    while not held:
        page.wait_for_timeout(20)
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
    page.locator("#field-steps").fill("12")
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
    page.locator("#field-steps").fill("10")
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
    page.evaluate(
        """async ([address, name]) => {
            const blob = await (await fetch(address)).blob();
            const files = new DataTransfer();
            files.items.add(new File([blob], name, {type: blob.type}));
            document.body.dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: files}));
        }""",
        [address, f"picture.{extension}"],
    )
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(f"carries its settings as {extension}")
    expect(page.locator("#seed-value")).to_have_value("99")


def test_code_tab_gives_a_curl_line_that_works(page: Page, server: LiveServer) -> None:
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
