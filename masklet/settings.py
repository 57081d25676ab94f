"""What the operator of a machine decides, read from the environment: `MASKLET_…`.

A job cannot change them: jobs come from forms and datasets, which others may fill in.
"""

import os
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from masklet.errors import UserError

PREFIX = "MASKLET_"

Network: TypeAlias = IPv4Network | IPv6Network


def _split(value: Any) -> Any:
    return [one.strip() for one in value.split(",") if one.strip()] if type(value) is str else value


def _network(value: Any) -> Any:
    return ip_network(value) if isinstance(value, str) else value


def _folder(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:  # a user of a container may have no home
        raise ValueError(str(error)) from None


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "masklet")


class Settings(BaseSettings):
    """One setting a field; its name in the environment is MASKLET_ and the field's name."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _ignore_empty(cls, given: Any) -> Any:
        # but an empty list of what is allowed means nothing, not all
        return {name: value for name, value in given.items() if value or name == "source_schemes"}

    source_schemes: Annotated[frozenset[str], NoDecode, BeforeValidator(_split)] = Field(
        default=frozenset({"http", "https", "s3", "gs", "gcs", "az", "abfs", "hf"}),
        description="Addresses that a job may name, by their schemes; paths and file:// always.",
    )
    source_cache: Annotated[Path, AfterValidator(_folder)] = Field(
        default_factory=_default_cache,
        validate_default=True,
        description="Folder that keeps what was fetched.",
    )
    source_max_bytes: Annotated[ByteSize, Field(gt=0)] = Field(
        default=ByteSize(64 * 2**30),
        description="Largest source that is fetched, such as 500MB or 64GiB.",
    )
    source_max_seconds: float = Field(
        default=3600, gt=0, allow_inf_nan=False, description="Longest time for fetching one source."
    )
    source_stall_seconds: float = Field(
        default=30,
        gt=0,
        allow_inf_nan=False,
        description="Longest time without a byte.",
    )
    source_retry_seconds: float = Field(
        default=1,
        ge=0,
        le=30,
        description="Pause before a broken download goes on; doubled each time.",
    )
    checkpoint_seconds: float = Field(
        default=30,
        ge=0,
        allow_inf_nan=False,
        description="Time of tracking after which a run that is killed could go on.",
    )
    allow_addresses: Annotated[
        tuple[Annotated[Network, BeforeValidator(_network)], ...],
        NoDecode,
        BeforeValidator(_split),
    ] = Field(
        default=(),
        description="Private addresses and networks that http(s) may lead to, such as "
        "10.1.0.0/16,127.0.0.1; none by default.",
    )


def load_settings() -> Settings:
    """Read the settings of this process; raises UserError for one that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = f"{PREFIX}{first['loc'][0]}".upper()
        problem = str(first["msg"]).removeprefix("Value error, ")
        raise UserError(f"{name}: {problem}") from None


def as_text(value: Any) -> str:
    """A setting as it would be written in the environment."""
    if isinstance(value, frozenset | tuple):
        return ",".join(sorted(map(str, value)))
    return f"{value:g}" if isinstance(value, float) else str(value)
