"""Every format in, three formats out; lies and bombs are refused before they cost anything."""

from __future__ import annotations

import io
import json
import resource
import struct
import time
import zlib
from typing import Any

import pytest
from PIL import Image, ImageCms

from darkroom.errors import InputImageError
from darkroom.media.images import decode, encode, format_of, read_metadata, shrink, sniff
from darkroom.types import ImageFormat, Output, Pixels

LIMIT = 1 << 20
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (8, 4)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def pixel(pixels: Pixels, x: int, y: int) -> tuple[int, ...]:
    start = (y * pixels.width + x) * 3
    return tuple(pixels.data[start : start + 3])


def close_to(found: tuple[int, ...], expected: tuple[int, ...], tolerance: int = 6) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, expected, strict=True))


# In


@pytest.mark.parametrize(
    ("kind", "content_type", "options"),
    [
        ("PNG", "image/png", {}),
        ("JPEG", "image/jpeg", {"quality": 95, "subsampling": 0}),
        ("WEBP", "image/webp", {"lossless": True}),
        ("BMP", "image/bmp", {}),
        ("GIF", "image/gif", {}),
    ],
)
def test_formats_are_told_by_their_bytes_and_read(kind: str, content_type: str, options: dict[str, Any]) -> None:
    data = saved(picture(), kind, **options)
    assert sniff(data) == content_type
    assert format_of(data) == kind
    pixels = decode(data, max_pixels=LIMIT)
    assert (pixels.width, pixels.height, len(pixels.data)) == (8, 4, 96)
    assert close_to(pixel(pixels, 0, 0), RED)
    assert close_to(pixel(pixels, 7, 3), BLUE)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("L", (4, 4), 255)
    data = saved(image.convert("I").point(lambda value: value * 257).convert("I;16"), "PNG") if mode == "I;16" else ""
    pixels = decode(data or saved(image.convert(mode), "PNG"), max_pixels=LIMIT)
    assert pixels.data == b"\xff" * 48


def test_sixteen_bits_are_scaled_not_cut() -> None:
    image = Image.new("I;16", (2, 1))
    image.putpixel((0, 0), 0x8000)
    image.putpixel((1, 0), 0xFFFF)
    assert decode(saved(image, "PNG"), max_pixels=LIMIT).data == bytes([128] * 3 + [255] * 3)


def test_cmyk_is_read() -> None:
    pixels = decode(saved(picture("CMYK"), "JPEG", quality=95), max_pixels=LIMIT)
    assert close_to(pixel(pixels, 0, 0), RED, 40)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_becomes_white(kind: str) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = decode(saved(image, kind, **options), max_pixels=LIMIT)
    assert pixel(pixels, 0, 0) == (255, 255, 255)
    assert close_to(pixel(pixels, 1, 0), (127, 127, 127), 1)


def test_a_transparent_palette_becomes_white() -> None:
    image = picture().quantize(4)
    data = saved(image, "GIF", transparency=image.getpixel((0, 0)))
    pixels = decode(data, max_pixels=LIMIT)
    assert pixel(pixels, 0, 0) == (255, 255, 255)
    assert pixel(pixels, 7, 0) == BLUE


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for kind in ("GIF", "WEBP", "PNG"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert close_to(pixel(decode(data, max_pixels=LIMIT), 1, 1), RED)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90° clockwise
    pixels = decode(saved(picture(size=(16, 8)), "JPEG", exif=exif, quality=95, subsampling=0), max_pixels=LIMIT)
    assert (pixels.width, pixels.height) == (8, 16)
    assert close_to(pixel(pixels, 4, 1), RED, 12)
    assert close_to(pixel(pixels, 4, 14), BLUE, 12)


def test_colour_profiles_are_applied_and_broken_ones_ignored() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (lab, b"nonsense"):
        assert pixel(decode(saved(picture(), "PNG", icc_profile=profile), max_pixels=LIMIT), 0, 0) == RED


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF", b"<svg/>", b"%PDF-1.4", b"II*\0", b"\0" * 64, b"RIFF\0\0\0\0WAVE", "\x89PNG".encode()],
)
def test_other_files_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(InputImageError, match="send PNG, JPEG, WEBP, BMP or GIF"):
        decode(data, max_pixels=LIMIT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_cut_and_garbled_files_are_refused(kind: str) -> None:
    data = saved(Image.effect_noise((64, 64), 50).convert("RGB"), kind)
    for broken in (data[: len(data) // 2], data[:30], data[:12] + b"\xff" * (len(data) - 12)):
        with pytest.raises(InputImageError):
            decode(broken, max_pixels=LIMIT)


def test_any_flipped_byte_is_an_image_or_an_input_error() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF"):
        data = bytearray(saved(picture(), kind))
        for place in range(len(data)):
            data[place] ^= 0xFF
            try:
                decode(bytes(data), max_pixels=4096)
            except InputImageError as error:
                assert "/" not in error.message  # no path of ours
            data[place] ^= 0xFF


# Bombs


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, depth: int = 1) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(saved(picture(size=(16, 16)), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_of(width: int, height: int) -> bytes:
    data = bytearray(saved(picture(), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    extended = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size
    body = extended + saved(picture(), "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize(
    "bomb",
    [
        png_of(20000, 20000),
        png_of(8193, 8192),
        png_of(2**31 - 1, 2**31 - 1),
        jpeg_of(64250, 64250),
        gif_of(60000, 60000),
        webp_of(16000, 16000),
        webp_of(16777216, 256),
    ],
    ids=["png", "png barely", "png absurd", "jpeg", "gif", "webp", "webp wide"],
)
def test_a_bomb_is_refused_from_its_header(bomb: bytes) -> None:
    decode(saved(picture(), "PNG"), max_pixels=LIMIT)  # Pillow's plugins are loaded
    assert len(bomb) < 5000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(3):
        began = time.thread_time()  # what others do on a busy machine does not count
        with pytest.raises(InputImageError):
            decode(bomb, max_pixels=64 << 20)
        times.append(time.thread_time() - began)
    assert min(times) < 0.05
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # kilobytes


def test_a_refusal_names_the_size_and_the_limit() -> None:
    with pytest.raises(InputImageError, match=r"100×50; at most 4,999 pixels"):
        decode(saved(picture(size=(100, 50)), "PNG"), max_pixels=4999)
    assert decode(saved(picture(size=(100, 50)), "PNG"), max_pixels=5000).width == 100


def test_a_compressed_text_chunk_does_not_grow() -> None:
    """A PNG may hide megabytes of zeros in its text."""
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * (200 << 20)))
    plain = saved(picture(), "PNG")
    data = plain[:33] + text + plain[33:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputImageError):
        decode(data, max_pixels=LIMIT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80_000


# Out


def noise(width: int = 64, height: int = 48) -> Pixels:
    image = Image.effect_noise((width, height), 60).convert("RGB")
    return Pixels(width=width, height=height, data=image.tobytes())


@pytest.mark.parametrize(
    ("kind", "content_type", "extension"),
    [
        (ImageFormat.JPEG, "image/jpeg", "jpg"),
        (ImageFormat.PNG, "image/png", "png"),
        (ImageFormat.WEBP, "image/webp", "webp"),
    ],
)
def test_pictures_are_encoded_with_their_parameters(kind: ImageFormat, content_type: str, extension: str) -> None:
    pixels = noise()
    metadata = {"prompt": 'naïve “猫” \\ "x"', "seed": 2**63 - 1, "steps": 4, "nested": {"a": [1, None]}}
    data, found_type, found_extension = encode(pixels, Output(format=kind), metadata)
    assert (found_type, found_extension, sniff(data)) == (content_type, extension, content_type)
    assert read_metadata(data) == metadata
    decoded = decode(data, max_pixels=LIMIT)
    assert (decoded.width, decoded.height) == (64, 48)
    if kind is ImageFormat.PNG:
        assert decoded == pixels
    assert read_metadata(encode(pixels, Output(format=kind, metadata=False), metadata)[0]) == {}
    assert read_metadata(encode(pixels, Output(format=kind))[0]) == {}


@pytest.mark.parametrize("kind", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_quality_counts(kind: ImageFormat) -> None:
    sizes = [len(encode(noise(), Output(format=kind, quality=quality))[0]) for quality in (20, 60, 99)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


def test_a_jpeg_of_high_quality_keeps_its_colours() -> None:
    stripes = Image.new("RGB", (16, 16))
    for x in range(16):
        stripes.paste(RED if x % 2 else BLUE, (x, 0, x + 1, 16))
    pixels = Pixels(width=16, height=16, data=stripes.tobytes())
    decoded = decode(encode(pixels, Output(quality=95))[0], max_pixels=LIMIT)
    assert close_to(pixel(decoded, 8, 8), BLUE, 12)
    assert close_to(pixel(decoded, 9, 8), RED, 12)


def test_a_prompt_too_long_for_a_jpeg_is_cut_there() -> None:
    metadata = {"prompt": "猫" * 40_000, "seed": 1, "negative": "x" * 100}
    found = read_metadata(encode(noise(), Output(), metadata)[0])
    assert found["prompt"].endswith("猫…")
    assert len(json.dumps(found)) <= 60_000
    assert {name: found[name] for name in ("seed", "negative")} == {"seed": 1, "negative": "x" * 100}
    assert read_metadata(encode(noise(), Output(format=ImageFormat.PNG), metadata)[0]) == metadata


def test_what_others_wrote_is_not_ours() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0hello"
    assert read_metadata(saved(picture(), "JPEG", exif=exif)) == {}
    assert read_metadata(saved(picture(), "GIF")) == {}
    with pytest.raises(InputImageError):
        read_metadata(b"nothing")


def test_shrink_keeps_the_aspect_and_never_enlarges() -> None:
    pixels = noise(64, 48)
    small = shrink(pixels, 32)
    assert (small.width, small.height, len(small.data)) == (32, 24, 32 * 24 * 3)
    assert shrink(pixels, 64) is pixels
    assert shrink(noise(300, 1), 100).height == 1
