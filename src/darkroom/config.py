"""Every setting of a server, read once from the environment (DARKROOM_…) and an optional settings file.

No other module reads the environment. `docs/settings.md` lists them; a test keeps the two equal.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import tomllib
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from darkroom.errors import ConfigurationError

FILE: Final = Path("darkroom.toml")


class DType(StrEnum):
    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class Quantise(StrEnum):
    NONE = "none"
    FP8 = "fp8"


class Compile(StrEnum):
    AUTO = "auto"
    ON = "on"
    OFF = "off"


class KVFormat(StrEnum):
    EXACT = "exact"
    FP8 = "fp8"


class EngineKind(StrEnum):
    CHILD = "child"  # a supervised process of its own: what a server uses
    LOCAL = "local"  # in this process: `darkroom generate`
    FAKE = "fake"  # no torch: draws a pattern; for work on the API and the playground


FOLDERS = ("data", "models")
PARTS = ("embedded", "faces", "safety", "decoder")  # whoever names one of these wants it: it has to be there

SECRET = ("database_url", "huggingface_token", "webhook_secret", "callback_secret")  # never said again in a message

DEVICES = r"^(auto|cpu|mps|cuda(:\d+)?)(\s*,\s*(auto|cpu|mps|cuda(:\d+)?))*$"  # cuda:0,cuda:1

# What the bucket's client takes, and paths that are meant as such: anything else is a scheme with a slip in it, which
# would be a local folder of that name.
BUCKETS = r"^$|^(s3a?|gs|az|azure|adl|abfss?|https?)://.+|^(file://)?[/~.].*"

SIZES = r"^$|^\d{2,4}x\d{2,4}(,\d{2,4}x\d{2,4})*$"  # 1024x1024,512x768

WAITS = r"^$|^\d{1,6}(,\d{1,6})*$"  # 60,300,1800


class Settings(BaseSettings):
    """Frozen. Names are the environment's without DARKROOM_ and in lower case; seconds, bytes and pixels by name."""

    model_config = SettingsConfigDict(env_prefix="DARKROOM_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on. Anything but loopback needs a key.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    data: Path = Field(Path("darkroom-data"), description="Folder for the database, pictures, adapters.")
    public_url: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Base of the URLs given to clients, http(s)://…; empty: the address of the request.",
    )
    database_url: str = Field("", description="PostgreSQL URL; empty: SQLite in the data folder.")
    media_url: str = Field(
        "",
        pattern=BUCKETS,
        description="Bucket for pictures (s3://, gs://, az://) or a folder (/…); empty: the data folder.",
    )
    models: Path = Field(
        Path("~/.cache/darkroom/models"), validate_default=True, description="Folder of installed weights."
    )
    embedded: Path | None = Field(None, description="Folder of the embedded model; unset: the one in the package.")
    faces: Path | None = Field(None, description="Face detector, an .onnx file or its folder; unset: faces in models.")
    safety: Path | None = Field(None, description="Safety classifier, a folder; unset: safety in models.")
    engine: EngineKind = Field(EngineKind.CHILD, description="Where the engine runs: child, local or fake.")
    device: str = Field("auto", pattern=DEVICES, description="auto, cpu, cuda, cuda:N or mps; several with commas.")
    dtype: DType = Field(DType.AUTO, description="auto (bf16 on a GPU, fp32 on a CPU), fp32 or bf16.")
    quantise: Quantise = Field(Quantise.NONE, description="none, or fp8: the networks multiply in 8 bits.")
    decoder: Path | None = Field(None, description="Autoencoder that draws the pictures; unset: the card's own.")
    compile: Compile = Field(Compile.AUTO, description="auto (on for CUDA), on or off: compile in idle time.")
    attention: str = Field("auto", description="auto (the fastest, as measured) or diffusers' name of one.")
    warm_sizes: str = Field(
        "1024x1024",
        pattern=SIZES,
        description="Sizes rehearsed when a card is loaded ahead, WIDTHxHEIGHT with commas; empty: none.",
    )
    memory_bytes: int = Field(0, ge=0, description="Weights kept in memory at most; 0: what the device has.")
    offload: bool = Field(False, description="Move each part to the device only while it works (small GPUs).")
    max_rows: int = Field(16, ge=1, description="Images in flight in one engine at most.")
    max_tokens: int = Field(65536, ge=256, description="Tokens in one forward pass at most.")
    kv_bank_bytes: int = Field(2 << 30, ge=0, description="Reference K/V kept between tasks, on the device.")
    kv_bank_host_bytes: int = Field(0, ge=0, description="Reference K/V kept in main memory when it leaves the device.")
    kv_bank_format: KVFormat = Field(KVFormat.EXACT, description="exact, or fp8: half the size, slightly different.")
    text_cache_entries: int = Field(64, ge=0, description="Prompt embeddings kept between tasks.")
    share_references: bool = Field(False, description="Let keys share reference K/V of equal images.")
    queue_limit: int = Field(10_000, ge=1, description="Tasks waiting in total at most.")
    queue_limit_per_key: int = Field(5_000, ge=1, description="Tasks waiting per key at most.")
    concurrent_tasks: int = Field(8, ge=1, description="Tasks one server works on at once.")
    lease_seconds: float = Field(20.0, gt=0, description="A task whose worker is silent for so long is taken over.")
    grace_seconds: float = Field(8.0, ge=0, description="Time running tasks get to finish when the server stops.")
    keep_seconds: int = Field(
        7 * 86400, ge=60, le=3_155_760_000, description="Pictures and records are kept so long by default."
    )
    allow_private_urls: bool = Field(False, description="Let callers' URLs point to private and loopback addresses.")
    fetch_seconds: float = Field(20.0, gt=0, description="Time for fetching one input image.")
    fetch_bytes: int = Field(50 << 20, ge=1, description="Size of one input image at most.")
    image_pixels: int = Field(64 << 20, ge=1, description="Pixels of one input image at most.")
    body_bytes: int = Field(128 << 20, ge=1, description="Size of one request or socket message at most.")
    cors_origins: str = Field(
        "auto",
        description="Web pages that may call, by origin: a comma-separated list, or `*` for any. `auto`: any where "
        "keys are asked for, those of this machine where none are.",
    )
    webhook_secret: str = Field("", description="Secret (whsec_…) that signs webhooks in the Standard Webhooks form.")
    webhook_retries: str = Field(
        "60,300,1800,7200,18000", pattern=WAITS, description="Seconds between a webhook's later tries, with commas."
    )
    callback_secret: str = Field("", description="Secret that signs Runflow callbacks.")
    sync_seconds: float = Field(25.0, gt=0, description="Longest wait of a Runflow sync_mode request.")
    inline_outputs: bool = Field(False, description="Answer Runflow sync_mode with data URIs instead of URLs.")
    metadata: bool = Field(True, description="Write the parameters into the picture's file.")
    default_acceleration: str = Field(
        "",
        pattern="^(none|low|medium|high)?$",
        description="acceleration (none, low, medium, high) when a request names none; empty: the card's.",
    )
    log_format: str = Field("text", pattern="^(text|json)$", description="text or json.")
    huggingface_token: str = Field("", description="Token for gated repositories.")

    @field_validator("host", *FOLDERS, *PARTS, mode="before")
    @classmethod
    def _not_given(cls, value: object, info: ValidationInfo) -> object:
        """`DARKROOM_DATA=` is how an environment file leaves it out; the current folder is `.`"""
        return cls.model_fields[str(info.field_name)].default if value == "" else value

    @field_validator("host")
    @classmethod
    def _bare(cls, value: str) -> str:
        """`[::1]` is how an address is written in a URL; a socket takes it without."""
        return value.removeprefix("[").removesuffix("]")

    @field_validator("huggingface_token")
    @classmethod
    def _of_a_header(cls, value: str) -> str:
        """It is sent in a header, which takes nothing else."""
        if not all("!" <= letter <= "~" for letter in value):
            raise ValueError("a token has letters, digits and signs of ASCII only, and no spaces")
        return value

    @field_validator(*FOLDERS, *PARTS)
    @classmethod
    def _at_home(cls, value: Path | None) -> Path | None:
        """Not every shell spells `~` out behind `=`, and none does in a file."""
        try:
            return value and value.expanduser()
        except RuntimeError:
            raise ValueError("there is no such home folder") from None

    @field_validator(*FOLDERS)
    @classmethod
    def _no_file(cls, value: Path) -> Path:
        """Weights in a file's place would quietly be demo mode."""
        if value.exists() and not value.is_dir():
            raise ValueError("this is a file, not a folder")
        return value

    @field_validator(*PARTS)
    @classmethod
    def _there(cls, value: Path | None) -> Path | None:
        """A wrong path would quietly be demo mode, or a part that seems not to be installed."""
        if value is not None and not value.exists():
            raise ValueError("there is no such file or folder")
        return value

    @property
    def database(self) -> str | Path:
        """Its URL, or the SQLite file of the data folder."""
        return self.database_url or self.data / "darkroom.db"

    @property
    def own_url(self) -> str:
        """Where programs of this machine reach the server."""
        return url_of({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.port)

    @property
    def sizes_to_warm(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each of warm_sizes."""
        pairs = (size.split("x") for size in self.warm_sizes.split(",") if size)
        return tuple((int(width), int(height)) for width, height in pairs)

    @property
    def webhook_waits(self) -> tuple[float, ...]:
        """Seconds, of webhook_retries."""
        return tuple(float(wait) for wait in self.webhook_retries.split(",") if wait)

    @property
    def faces_folder(self) -> Path:
        return self.faces or self.models / "faces"

    @property
    def safety_folder(self) -> Path:
        return self.safety or self.models / "safety"

    @property
    def features(self) -> frozenset[str]:
        """The optional parts that are installed: "faces" (a detector, and the extra that runs it), "safety"."""
        detector = self.faces_folder.is_file() or any(self.faces_folder.glob("*.onnx"))
        faces = detector and find_spec("onnxruntime") is not None
        safety = (self.safety_folder / "config.json").is_file()
        return frozenset({name for name, there in (("faces", faces), ("safety", safety)) if there})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over the file."""
        return init_settings, env_settings, InitSettingsSource(settings_cls, in_file())


def url_of(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it. host: an address or a name, bare."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def in_file() -> dict[str, Any]:
    """What darkroom.toml says, nothing where there is none. Raises ConfigurationError when it cannot be read."""
    try:
        return tomllib.loads(FILE.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        told = f"{error}. A setting is written like port = 8000, text in quotes"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        told = f"line {line} is not UTF-8. Save the file in that encoding"
    except OSError as error:
        told = f"it cannot be read: {error.strerror}. Settings are taken from it where it is there"
    raise ConfigurationError(f"{FILE}: {told}.")


def unknown_names() -> list[str]:
    """Names of the environment that look like settings and are none: a typing error, most likely."""
    known = {f"DARKROOM_{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith("DARKROOM_") and name not in known)


def _no_such(name: str) -> str:
    near = difflib.get_close_matches(name.lower().removeprefix("darkroom_"), Settings.model_fields, n=1, cutoff=0.7)
    hint = f" Did you mean `{near[0]}`?" if near else " docs/settings.md lists them."
    return f"{FILE}: there is no setting `{name}`.{hint}"


def load(**arguments: object) -> Settings:
    """Settings from arguments (None: not given), the environment and darkroom.toml. Raises ConfigurationError."""
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":  # only the file gives names that are not asked for
            raise ConfigurationError(_no_such(name), parameter=name) from None
        variable = f"DARKROOM_{name.upper()}"
        by_file = name not in given and all(variable != each.upper() for each in os.environ) and name in in_file()
        if first["type"] == "string_pattern_mismatch":  # a pattern is no explanation
            told = f"{first['input']!r} is no value of it. {Settings.model_fields[name].description}"
        elif name in SECRET:
            told = f"{first['msg'].removeprefix('Value error, ')}."
        else:
            shown = first["input"] if isinstance(first["input"], int | float) else repr(str(first["input"]))
            told = f"{first['msg'].removeprefix('Value error, ')}; {shown} was given."
        raise ConfigurationError(f"{f'{FILE}: {name}' if by_file else variable}: {told}", parameter=name) from None
