"""Every setting of the service, typed. Nothing else reads the environment.

A setting comes from, first match wins: the command line, an environment variable with the
prefix ``GATEHOUSE_``, a line of the file ``.env`` in the working folder, the default.
"""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.engine.request import MAX_ROWS_PER_REQUEST
from app.exceptions import StartupError

ENV_PREFIX = "GATEHOUSE_"
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[^/?#@\s:*\[\]]+)(:\d{1,5})?")
PROJECT_DIR = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """The settings of one service.

    Use :func:`load_settings`, which also refuses unknown variables.

    Raises:
        pydantic.ValidationError: a value is out of range, or two contradict each other.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_file=None, env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes any free one.")
    root_path: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="Path under which a proxy offers the service, such as /gatehouse, and which "
        "the proxy strips before it passes a request on: /docs needs to know it.",
    )
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Keys that may use the service: entries NAME:KIND:SHA256 as written by "
        "gatehouse keys, separated by commas.",
        repr=False,
    )
    api_keys_file: Path | None = Field(
        None, description="File with more such entries, one per line; # begins a comment."
    )
    allow_anonymous: bool = Field(
        False,
        description="True: without user keys, everyone who can reach the service may use it. On "
        "this machine's own addresses that is always so; listening on others without keys "
        "requires this.",
    )
    key_requests_per_minute: int | None = Field(
        None,
        ge=1,
        description="Maximum requests of one key per minute; unset: no limit. All requests "
        "without a key count as one key's.",
    )
    key_tokens_per_minute: int | None = Field(
        None,
        ge=1,
        description="Maximum tokens read and written for one key per minute; unset: no limit. "
        "They are counted when a request ends.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins whose pages may use the service from a browser, such as "
        "https://example.org, separated by commas; *: all.",
    )
    api_key: SecretStr | None = Field(
        None,
        description="Key that the command line sends to a server (--server). It protects nothing: "
        "a service that has this and no keys of its own does not start.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda|cuda:\d+)$",
        description="Where models run: auto (the GPU if there is one), cpu, cuda or cuda:N.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="Precision to serve in; auto is int8 on a CPU, and on a GPU bfloat16 if it "
        "supports that, else float16. int8 is only for CPUs, float16 only for GPUs.",
    )
    engine: Literal["process", "inline"] = Field(
        "process",
        description="Where models are decoded: in a separate process, or inline, on a thread of "
        "the HTTP process.",
    )
    row_budget: int = Field(
        256,
        ge=MAX_ROWS_PER_REQUEST,
        le=4_096,
        description="Rows (sequences: one for each output or beam) that one model decodes at once.",
    )
    num_threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Threads that share out a step, at most 8 in int8. Unset: two fewer than the "
        "usable cores (one is for HTTP, one for reading prompts), at least 1 and at most 8; while "
        "up to four rows run in int8, at least 2 where there are two cores.",
    )
    checkpoints_dir: Path = Field(
        PROJECT_DIR / "checkpoints",
        description="Folder with one folder for each checkpoint, or a single checkpoint's folder.",
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names of the checkpoints to load, separated by commas; empty: all found."
    )
    default_generate_model: str | None = Field(
        None,
        description="Model of /generate when the request names none; unset: the first "
        "language model by name.",
    )
    default_translate_model: str | None = Field(
        None,
        description="Model of /translate when the request names none; unset: the first "
        "translation model by name.",
    )
    queue_capacity: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Maximum texts (prompts, or texts to translate) that may wait for the engine.",
    )
    max_body_bytes: int = Field(
        2 * 1024 * 1024, ge=1024, description="Largest request body, in bytes."
    )
    receive_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=3_600,
        description="Maximum time for a request's head to arrive, and then for its body.",
    )
    max_texts_per_request: int = Field(
        64, ge=1, description="Maximum prompts or texts to be decoded in one request."
    )
    max_segments_per_score: int = Field(
        5_000, ge=1, description="Maximum hypotheses in one /bleu request."
    )
    max_characters_per_text: int = Field(
        5_000, ge=1, description="Maximum characters in one prompt, text, hypothesis or reference."
    )
    max_new_tokens_limit: int = Field(
        1_024, ge=1, description="Maximum tokens that a request may ask for per text."
    )
    default_max_new_tokens: int = Field(
        128,
        ge=1,
        description="Maximum tokens that /generate writes if the request gives no number.",
    )
    max_alignment_cells: int = Field(
        1_000_000,
        ge=1,
        description="Maximum attention weights that one /translate request may ask for: texts x "
        "hypotheses x maximum target tokens x source tokens. Also the maximum candidates of its "
        "beam traces: texts x beam size x maximum target tokens.",
    )
    state_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="Secret with which states are signed, at least 32 characters; services that "
        "exchange states need the same one. unset: a random one at every start.",
    )
    prefix_cache_bytes: int = Field(
        16 * 1024 * 1024,
        ge=0,
        description="Memory of each language model served in int8 for the states of prompts that "
        "it has read; 0: none are kept.",
    )
    max_connections: int = Field(
        2_000,
        ge=1,
        le=100_000,
        description="Maximum connections served at once; requests on further ones get 503.",
    )
    send_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=3_600,
        description="A client that reads nothing of its answer for this long is disconnected.",
    )
    idle_timeout_seconds: int = Field(
        5,
        ge=1,
        le=3_600,
        description="A connection without a request for this long is closed. A proxy that keeps "
        "connections open must close them earlier.",
    )
    request_timeout_seconds: float = Field(
        60.0, gt=0, le=86_400, description="Maximum time for one request; after that, it gets 504."
    )
    stream_keepalive_seconds: float = Field(
        15.0,
        gt=0,
        le=3_600,
        description="A stream that has been silent for this long sends a comment, so that no "
        "proxy closes it.",
    )
    drain_timeout_seconds: float = Field(
        30.0, ge=0, le=3_600, description="Time for running requests to finish after SIGTERM."
    )
    max_step_age_seconds: float = Field(
        10.0,
        ge=2,
        le=3_600,
        description="/health/ready answers 503 when the engine's last step is older than this.",
    )
    engine_hang_seconds: float = Field(
        30.0,
        ge=2,
        le=3_600,
        description="An engine whose last step is older than this is killed and restarted; what "
        "it was decoding gets 503.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level of log lines that are written."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto",
        description="json: one object per line. auto: text if the log goes to a terminal, else "
        "json.",
    )

    @field_validator("models", "api_keys", "cors_origins", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        if isinstance(value, str):
            names = (name.strip() for name in value.split(","))
            return tuple(dict.fromkeys(name for name in names if name))
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        # As browsers write them, with which they are compared.
        origins = tuple(dict.fromkeys(origin.lower() for origin in origins))
        for origin in origins:
            found = _ORIGIN.fullmatch(origin)
            if origin != "*" and not (found and int((found[2] or ":0")[1:]) < 2**16):
                raise ValueError(f"{origin} is no origin, as in https://example.org:8443")
        return origins

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fit_together(self) -> "Settings":
        if self.max_texts_per_request > self.queue_capacity:
            raise ValueError(
                f"{self._told('max_texts_per_request')} is above "
                f"{self._told('queue_capacity')}: such a request could never be accepted"
            )
        if self.engine_hang_seconds < self.max_step_age_seconds:
            raise ValueError(
                f"{self._told('engine_hang_seconds')} is below "
                f"{self._told('max_step_age_seconds')}: an engine would be killed while it counts "
                "as ready"
            )
        # A default that nobody chose gives way to the limit.
        is_chosen = "default_max_new_tokens" in self.model_fields_set
        if is_chosen and self.default_max_new_tokens > self.max_new_tokens_limit:
            raise ValueError(
                f"{self._told('default_max_new_tokens')} is above "
                f"{self._told('max_new_tokens_limit')}"
            )
        return self

    def _told(self, setting: str) -> str:
        """A setting with its value, as a person would look for it."""
        return f"{variable_name(setting)} ({getattr(self, setting):g})"


def variable_name(setting: str) -> str:
    """The environment variable of a setting."""
    return f"{ENV_PREFIX}{setting.upper()}"


def load_settings(env_file: Path | None = Path(".env"), **overrides: Any) -> Settings:
    """Read the settings from the command line's overrides, the environment and ``.env``.

    Args:
        env_file: file of ``NAME=value`` lines, read where it exists; None for no file.
        overrides: settings by name; None means not given.

    Raises:
        StartupError: an unknown variable, or a value that is refused; the message names it. Or
            ``.env`` cannot be read.
    """
    from_file = _read_env_file(env_file)
    _refuse_unknown([*os.environ, *from_file])
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(_env_file=env_file, **given)
    except ValidationError as error:
        raise StartupError(_explain(error)) from None


def _read_env_file(env_file: Path | None) -> dict[str, str | None]:
    if env_file is None or not env_file.is_file():
        return {}
    try:
        return dotenv_values(env_file)
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{env_file} cannot be read: {error}") from error


def _refuse_unknown(variables: Iterable[str]) -> None:
    known = [variable_name(name) for name in Settings.model_fields]
    for variable in variables:
        if not variable.upper().startswith(ENV_PREFIX) or variable.upper() in known:
            continue
        nearest = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=0.0)
        raise StartupError(f"unknown setting {variable}: did you mean {nearest[0]}?")


def _explain(error: ValidationError) -> str:
    reasons = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        message = item["msg"].removeprefix("Value error, ")
        # Of a secret pydantic counts "items".
        message = message.replace("items after validation", "characters")
        name = variable_name(str(item["loc"][0])) if item["loc"] else ""
        reasons.append(f"{name}: {message}" if name else message)
    return "invalid setting: " + "; ".join(reasons)
