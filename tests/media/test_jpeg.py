"""Pictures encoded in strips are what the encoder makes of the whole, whatever their size."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from darkroom.media import jpeg
from darkroom.media.jpeg import STRIP_ROWS, encode_jpeg
from darkroom.types import Pixels


def noise(width: int, height: int) -> Pixels:
    data = np.random.default_rng(3).integers(0, 256, height * width * 3, dtype=np.uint8).tobytes()
    return Pixels(width=width, height=height, data=data)


def whole(pixels: Pixels, quality: int, full_chroma: bool, **options: object) -> bytes:
    """What Pillow makes of it in one go."""
    image = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.data)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=0 if full_chroma else 2, **options)
    return file.getvalue()


@pytest.mark.parametrize("full_chroma", [True, False])
@pytest.mark.parametrize(
    ("width", "height"), [(64, 2 * STRIP_ROWS), (40, STRIP_ROWS + 1), (17, 10 * STRIP_ROWS + 77), (1, 3 * STRIP_ROWS)]
)
def test_strips_give_the_bytes_of_the_whole(width: int, height: int, full_chroma: bool) -> None:
    pixels = noise(width, height)
    rows = STRIP_ROWS // (8 if full_chroma else 16)
    assert encode_jpeg(pixels, 90, full_chroma=full_chroma) == whole(pixels, 90, full_chroma, restart_marker_rows=rows)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (300, STRIP_ROWS), (8 * 1024, STRIP_ROWS + 8)])
def test_a_picture_of_one_strip_has_no_markers(width: int, height: int) -> None:
    """So wide a picture has more blocks between two markers than the format counts."""
    pixels = noise(width, height)
    assert encode_jpeg(pixels, 80, full_chroma=True) == whole(pixels, 80, True)


def test_what_is_written_inside_is_written_once() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a red circle"
    file = encode_jpeg(noise(16, 3 * STRIP_ROWS), 90, full_chroma=True, exif=exif)
    assert file.count(b"a red circle") == 1
    with Image.open(io.BytesIO(file)) as image:
        assert image.getexif()[0x010E] == "a red circle" and image.size == (16, 3 * STRIP_ROWS)


def test_systems_without_files_in_memory_get_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(40, 2 * STRIP_ROWS)
    file = encode_jpeg(pixels, 90, full_chroma=True)
    monkeypatch.delattr(jpeg.os, "memfd_create", raising=False)
    assert encode_jpeg(pixels, 90, full_chroma=True) == file


def test_other_threads_run_meanwhile() -> None:
    """An event loop must not stand still while a picture is encoded: in one go that took nine tenths of the time."""
    done, turns = threading.Event(), 0
    pixels = noise(8192, STRIP_ROWS)  # tens of milliseconds: a busy machine's scheduler takes turns meanwhile

    def encode() -> None:
        encode_jpeg(pixels, 95, full_chroma=True)
        done.set()

    thread = threading.Thread(target=encode)
    thread.start()
    while not done.is_set():
        time.sleep(0)  # no wait: gives the interpreter's lock away once
        turns += 1
    thread.join()
    assert turns > 60
