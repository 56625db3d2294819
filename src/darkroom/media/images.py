"""Image files: what they are, decoded without being bombed, encoded with the parameters inside.

The first bytes decide the format; names and content types of others are not believed. The header's size is checked
before anything is decoded, so a few bytes that promise 400 megapixels cost nothing. All of it computes: call it
in a thread.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from enum import StrEnum
from typing import Any, Final

from PIL import ExifTags, Image, ImageCms, ImageOps

from darkroom.errors import InputImageError
from darkroom.media.jpeg import encode_jpeg
from darkroom.types import ImageFormat, Output, Pixels

METADATA_KEY: Final = "darkroom"  # of the PNG text chunk; JPEG and WEBP carry it as the EXIF user comment
EXIF_BYTES: Final = 60_000  # a JPEG segment holds 65,533
WHITE: Final = (255, 255, 255)
WEBP_METHOD: Final = 2  # 1024×1024: 145 ms, method 4 takes 260 ms for the same size
FULL_CHROMA_FROM: Final = 90  # JPEG quality from which colour is kept at full resolution
USER_COMMENT: Final = ExifTags.Base.UserComment
ASCII: Final = b"ASCII\0\0\0"  # EXIF's mark of the comment's character set
BROKEN: Final = (  # what Pillow raises for files that lie
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)

# Our own cap says the same with the limit in it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class InputFormat(StrEnum):
    """Formats that are read. Values are Pillow's names."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WEBP"
    BMP = "BMP"
    GIF = "GIF"

    @property
    def content_type(self) -> str:
        return f"image/{self.value.lower()}"

    @property
    def extension(self) -> str:
        return "jpg" if self is InputFormat.JPEG else self.value.lower()


def format_of(data: bytes) -> InputFormat:
    """By the first bytes. Raises InputImageError."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return InputFormat.PNG
    if data.startswith(b"\xff\xd8\xff"):
        return InputFormat.JPEG
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return InputFormat.WEBP
    if data.startswith(b"BM"):
        return InputFormat.BMP
    if data.startswith((b"GIF87a", b"GIF89a")):
        return InputFormat.GIF
    raise InputImageError("The file is not an image of a known format; send PNG, JPEG, WEBP, BMP or GIF.")


def sniff(data: bytes) -> str:
    """The content type by the first bytes. Raises InputImageError."""
    return format_of(data).content_type


def decode(data: bytes, *, max_pixels: int) -> Pixels:
    """The first frame as sRGB: upright by its EXIF orientation, transparency over white, 16 bits scaled to 8.

    Raises InputImageError when it is no image, broken, or its header promises more than max_pixels.
    """
    kind = format_of(data)
    try:
        with Image.open(io.BytesIO(data), formats=[kind.value]) as image:
            _check_size(image.size, max_pixels)
            image.load()
            pixels = _opaque(_in_srgb(ImageOps.exif_transpose(image)))
            return Pixels(width=pixels.width, height=pixels.height, data=pixels.tobytes())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(max_pixels) from None
    except BROKEN:
        raise InputImageError(f"The {kind.value} file is damaged or incomplete; send it again.") from None


def shrink(pixels: Pixels, max_side: int) -> Pixels:
    """Scaled down, aspect kept, until no side is longer than max_side; never up."""
    longest = max(pixels.width, pixels.height)
    if longest <= max_side:
        return pixels
    scale = max_side / longest
    size = (max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale)))
    small = _as_image(pixels).resize(size, Image.Resampling.LANCZOS)
    return Pixels(width=size[0], height=size[1], data=small.tobytes())


def encode(pixels: Pixels, output: Output, metadata: dict[str, Any] | None = None) -> tuple[bytes, str, str]:
    """(file, content type, extension). metadata is written into the file when output.metadata says so.

    metadata: what JSON can hold. Longest texts are cut where a format has no room (JPEG and WEBP: 60 kB).
    """
    written = metadata if output.metadata and metadata else None
    if output.format is ImageFormat.PNG:
        from darkroom.media.png import encode_png  # with numpy, which nothing else here needs

        texts = {METADATA_KEY: json.dumps(written, ensure_ascii=False)} if written else {}
        return encode_png(pixels, texts), "image/png", "png"
    exif = _exif(written) if written else None
    if output.format is ImageFormat.WEBP:
        file = io.BytesIO()
        options = {} if exif is None else {"exif": exif}
        _as_image(pixels).save(file, "WEBP", method=WEBP_METHOD, quality=output.quality, **options)
        return file.getvalue(), "image/webp", "webp"
    data = encode_jpeg(pixels, output.quality, full_chroma=output.quality >= FULL_CHROMA_FROM, exif=exif)
    return data, "image/jpeg", "jpg"


def read_metadata(data: bytes) -> dict[str, Any]:
    """What encode wrote; {} when there is nothing of ours. Raises InputImageError when it is no image."""
    kind = format_of(data)
    try:
        with Image.open(io.BytesIO(data), formats=[kind.value]) as image:
            if kind is InputFormat.PNG:
                image.load()  # a text chunk may follow the pixels
                text = image.info.get(METADATA_KEY)
            else:
                comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(USER_COMMENT)
                text = comment[len(ASCII) :] if isinstance(comment, bytes) and comment.startswith(ASCII) else None
            found = json.loads(text) if text else None
    except json.JSONDecodeError:
        return {}
    except BROKEN:
        raise InputImageError(f"The {kind.value} file is damaged or incomplete; send it again.") from None
    return found if isinstance(found, dict) else {}


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise _too_large(max_pixels, f"{size[0]}×{size[1]}")


def _too_large(max_pixels: int, what: str = "too large") -> InputImageError:
    return InputImageError(f"The image is {what}; at most {max_pixels:,} pixels are read. Send a smaller one.")


def _in_srgb(image: Image.Image) -> Image.Image:
    """Colours converted by the file's profile; a profile that does not fit is as good as none."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return image if converted is None else converted


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    page = Image.new("RGB", layered.size, WHITE)
    page.paste(layered, mask=layered.getchannel("A"))
    return page


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits a pixel scaled down; Pillow's own conversion would cut everything above 255 to white."""
    return image.convert("I").point([value // 256 for value in range(65536)], "L")


def _as_image(pixels: Pixels) -> Image.Image:
    return Image.frombuffer("RGB", (pixels.width, pixels.height), pixels.data, "raw", "RGB", 0, 1)


def _exif(metadata: dict[str, Any]) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[USER_COMMENT] = ASCII + _fitting(metadata, EXIF_BYTES)
    return exif


def _fitting(metadata: dict[str, Any], limit: int) -> bytes:
    """As ASCII JSON of at most limit bytes: the longest texts are halved until it fits, and end in …"""
    metadata = dict(metadata)
    while len(text := json.dumps(metadata).encode()) > limit:
        longest = max(metadata, key=lambda name: len(json.dumps(metadata[name])))
        value = metadata[longest]
        if isinstance(value, str) and len(value) > 1:
            metadata[longest] = value[: len(value) // 2].rstrip("…") + "…"
        else:
            del metadata[longest]
    return text
