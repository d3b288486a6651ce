"""The settings of the command line client. No other file of it reads the environment."""

from __future__ import annotations

from pydantic import HttpUrl, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class CliSettings(BaseSettings):
    """`LONGCAT_URL` and `LONGCAT_API_KEY`. Options on the command line take precedence."""

    model_config = SettingsConfigDict(env_prefix="LONGCAT_", env_ignore_empty=True, extra="ignore")

    url: HttpUrl = HttpUrl("http://127.0.0.1:8000")
    api_key: SecretStr | None = None
