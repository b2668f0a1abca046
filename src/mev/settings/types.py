"""Types of settings, and the class that every group of settings derives from."""

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class VariableGroup(BaseSettings):
    """A group of settings.

    Variables are read in upper case; an empty one counts as not set.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)


def _split(value: object) -> object:
    return (
        tuple(part.strip() for part in value.split(",") if part.strip())
        if isinstance(value, str)
        else value
    )


def _check_origins(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        if not re.fullmatch(r"(https?|wss?)://[A-Za-z0-9.\-_\[\]:*]+", text):
            raise ValueError(f"{text!r} is not an origin such as https://desk.example")
    return value


def _check_networks(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        ip_network(text, strict=False)
    return value


def _expand(value: Path) -> Path:
    return value.expanduser().absolute()


Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Comma-separated texts."""
Origins = Annotated[Names, AfterValidator(_check_origins)]
Networks = Annotated[Names, AfterValidator(_check_networks)]
FilePath = Annotated[Path, AfterValidator(_expand)]
"""The path of a file or folder; ~ is the user's home."""
