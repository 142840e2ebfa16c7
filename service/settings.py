"""Every knob of the service: flags over `COTS_*` variables over a YAML file over these defaults."""

from __future__ import annotations

import functools
import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from cots_model.config import Precision
from cots_model.errors import ConfigError, InputError
from cots_model.faults import describe_unknown, place_of
from service.cors import Origin

MIB = 1024 * 1024
CLOSE_S = 1.0
"""Time that the threads have to end, the last part of the grace time."""
OPEN_PATHS = frozenset({"/livez", "/readyz"})
"""Paths that answer whoever asks: balancers and container runtimes know neither key nor name."""

KeyHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
HostName = Annotated[str, Field(pattern=r"^[a-z0-9._-]+$|^[0-9a-f:.]+$")]
Port = Annotated[int, Field(gt=0, le=65535)]


class Settings(BaseSettings):
    """Checked, immutable settings.

    Attributes:
        galleries: folder whose sub-folders are the galleries.
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        allow_public: permit an address other than loopback without API keys.
        allowed_hosts: further names that requests may call this server by; see `trusted_hosts`.
        cors_origins: web pages elsewhere (`https://host`) that may read our answers in a browser.
        checkpoint: model folder, bundled name or hub id.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: of the model: `float32`, or `bfloat16` or `int8`, which can be faster.
        api_key_sha256: SHA-256 (hex) of each accepted API key; empty means no keys.
        require_all_galleries: `/readyz` is 503 while any gallery could not be loaded.
        max_body_bytes: largest request body, enforced while it streams in.
        max_bodies_bytes: of the bodies that are held together; small ones are always read.
        body_timeout_s: longest time a client may take to send its body.
        max_text_bytes: largest query text, in UTF-8.
        max_k: most hits of one answer.
        max_offset: furthest first hit.
        duplicate_similarity: cosine of vectors from which on `deduplicate` takes two hits for one.
        max_queries: most entries of `queries`.
        max_query_parts: most entries of a weighted query.
        max_vectors: most hits of one answer, of all its queries, that come with their `embedding`
            or `frames`.
        max_hits_together: hits that all answers in the making may have together, about 2 kB each;
            those with `embedding` or `frames` count sixteenfold, and small answers are always made.
        max_image_pixels: largest width x height of a picture, by its header.
        image_urls: whether pictures are fetched by url; the limits of that follow.
        image_url_ports: TCP ports that may be connected to.
        image_url_max_bytes: largest picture fetched.
        image_url_timeout_s: longest time for one picture, redirects and all.
        image_url_fetches: pictures fetched at once.
        max_image_urls: most urls of one request.
        image_url_total_bytes: of the fetched pictures of one request together.
        max_thumbnail_px: largest side of a thumbnail.
        thumbnail_cache_bytes: memory kept for thumbnails already made.
        reload_interval_s: pause between looks for new versions and galleries; 0 never looks.
        memory_budget_bytes: main memory that all open galleries may take together; without it,
            each may take what the machine, or the container, has free.
        workers: processes that answer on the one address, each with a model of its own.
        worker_heartbeat_s: pause between the signs of life that several workers give their parent.
        worker_silent_s: a worker that gave none for so long is ended and replaced.
        queue_size: jobs waiting for each kind of worker before 429; fewer wait for the encoder
            where more would not be done before their deadline.
        encode_batch: most texts or pictures encoded together, fewer where that would take over a
            second; a larger request goes alone.
        encode_wait_ms: longest time a text or picture waits for others to be encoded with; at 0
            those are encoded together that came while the encoder was at work.
        cached_texts: query texts whose vectors are remembered, about 1 kB each and the text.
        decode_threads: threads that decode pictures and read items, and as many that read videos.
        search_threads: threads that search galleries.
        search_batch_hits: most hits that requests which are one search ask for together.
        deadline_s: time a request may take after its body has arrived, before 504.
        grace_s: time between SIGTERM and exit.
        drain_s: part of `grace_s` in which new requests are still answered and `/readyz` is 503.
        probe_interval_s: pause between probes of the model and the worker threads.
        probe_max_age_s: `/readyz` is 503 when the last good probe is older; a picture that takes
            the model long is part of one a minute.
        log_level: lowest level logged.
    """

    model_config = SettingsConfigDict(
        env_prefix="COTS_", env_ignore_empty=True, extra="forbid", frozen=True
    )

    galleries: Path = Path("galleries")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    allow_public: bool = False
    allowed_hosts: Annotated[tuple[HostName, ...], NoDecode] = ()
    cors_origins: Annotated[tuple[Origin, ...], NoDecode] = ()
    checkpoint: str = "cots-mini"
    device: str = "auto"
    precision: Precision = "float32"
    api_key_sha256: Annotated[tuple[KeyHash, ...], NoDecode] = ()
    require_all_galleries: bool = True

    max_body_bytes: int = Field(default=20 * MIB, gt=0)
    max_bodies_bytes: int = Field(default=256 * MIB, gt=0)
    body_timeout_s: float = Field(default=60.0, gt=0)
    max_text_bytes: int = Field(default=8192, gt=0)
    max_k: int = Field(default=1000, gt=0)
    max_offset: int = Field(default=10_000, ge=0)
    duplicate_similarity: float = Field(default=0.97, gt=0, le=0.9999)
    max_queries: int = Field(default=256, gt=0)
    max_query_parts: int = Field(default=16, gt=0)
    max_vectors: int = Field(default=10_000, gt=0)
    max_hits_together: int = Field(default=500_000, gt=0)
    max_image_pixels: int = Field(default=50_000_000, gt=0)
    image_urls: bool = False
    image_url_ports: Annotated[tuple[Port, ...], NoDecode] = (80, 443)
    image_url_max_bytes: int = Field(default=10 * MIB, gt=0)
    image_url_timeout_s: float = Field(default=5.0, gt=0)
    image_url_fetches: int = Field(default=8, gt=0)
    max_image_urls: int = Field(default=8, gt=0)
    image_url_total_bytes: int = Field(default=20 * MIB, gt=0)
    max_thumbnail_px: int = Field(default=1024, ge=16)
    thumbnail_cache_bytes: int = Field(default=64 * MIB, ge=0)

    reload_interval_s: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    memory_budget_bytes: int | None = Field(default=None, gt=0)
    workers: int = Field(default=1, ge=1, le=64)
    worker_heartbeat_s: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    worker_silent_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    queue_size: int = Field(default=64, gt=0)
    encode_batch: int = Field(default=48, gt=0)
    encode_wait_ms: float = Field(default=0.0, ge=0, le=1000)
    cached_texts: int = Field(default=4096, ge=0)
    decode_threads: int = Field(default=2, gt=0)
    search_threads: int = Field(default=2, gt=0)
    search_batch_hits: int = Field(default=2048, gt=0)
    deadline_s: float = Field(default=10.0, gt=0)
    grace_s: float = Field(default=20.0, gt=0)
    drain_s: float = Field(default=1.0, ge=0)
    probe_interval_s: float = Field(default=10.0, gt=0)
    probe_max_age_s: float = Field(default=30.0, gt=0)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @classmethod
    def load(cls, config: Path | None = None, **flags: Any) -> Settings:
        """Read the settings; `flags` that are None are left to the other sources.

        Raises:
            ConfigError: naming every key at fault.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        sourced = _with_file(cls, _existing(config))
        try:
            return sourced(**given)
        except ValidationError as err:
            faults = "; ".join(map(_clause, err.errors(include_input=False)))
            raise ConfigError(f"settings: {faults}") from err
        except (yaml.YAMLError, OSError, ValueError, TypeError, AttributeError) as err:
            reason = " ".join(str(err).split())
            message = f"{config} is not a YAML mapping of settings ({reason}); see docs/http.md"
            raise ConfigError(message) from err

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The precedence: arguments, then environment, then the YAML file."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)

    @field_validator(
        "api_key_sha256", "allowed_hosts", "cors_origins", "image_url_ports", mode="before"
    )
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip().lower() for part in value.split(",") if part.strip())
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_times(self) -> Settings:
        least = self.drain_s + 1 + CLOSE_S  # requests in flight get a second at least
        if self.grace_s < least:
            raise ValueError(
                f"grace_s ({self.grace_s:g}) is too short for drain_s ({self.drain_s:g}); "
                f"set grace_s to {least:g} or more, or drain_s to less"
            )
        if self.worker_silent_s < 3 * self.worker_heartbeat_s:
            raise ValueError(
                f"worker_silent_s ({self.worker_silent_s:g}) is too short for worker_heartbeat_s "
                f"({self.worker_heartbeat_s:g}); set it to three times that or more"
            )
        return self

    def check_bind(self) -> None:
        """Refuse to open an unprotected service to the network.

        Raises:
            InputError: for an address that is not loopback, without keys or `allow_public`.
        """
        if self.api_key_sha256 or self.allow_public or is_loopback(self.host):
            return
        raise InputError(
            f"host {self.host!r} is reachable from the network and no API key is set; "
            "set COTS_API_KEY_SHA256, listen on 127.0.0.1, or add --allow-public"
        )

    def trusted_hosts(self) -> frozenset[str] | None:
        """Names, beside those of loopback, that requests may call this server by; None for any.

        Without keys, a server on loopback is protected by being there, so its name is checked. On
        another address it is checked if `allowed_hosts` says how the server is called.
        """
        if self.api_key_sha256 or not (self.allowed_hosts or is_loopback(self.host)):
            return None
        return frozenset(self.allowed_hosts)


@functools.lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _existing(config: Path | None) -> Path | None:
    if config is not None and not config.is_file():
        raise ConfigError(f"{config} does not exist; --config takes a YAML file of settings")
    return config


def _with_file(cls: type[Settings], config: Path | None) -> type[Settings]:
    """The settings class, reading `config` as its file."""

    class SettingsFromFile(cls):  # type: ignore[misc, valid-type]
        model_config = SettingsConfigDict(yaml_file=config, yaml_file_encoding="utf-8")

    return SettingsFromFile


def _clause(fault: ErrorDetails) -> str:
    """What is wrong, without the value, which may be a secret."""
    if fault["type"] == "extra_forbidden":
        return describe_unknown(fault["loc"], [*Settings.model_fields], noun="setting")
    return f"{place_of(fault['loc']) or '(all)'}: {fault['msg']}"
