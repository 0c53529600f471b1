"""What an operator can choose, from the environment (``FHE_LLM_*``) or the command line."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import ByteSize, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fhe_llm.params import preset

MIB = 1 << 20


def _default_data_dir() -> Path:
    return Path(platformdirs.user_data_dir("fhe-llm", appauthor=False)) / "server"


class Settings(BaseSettings):
    """Checked and immutable. ``api_keys`` is comma-separated in the environment; key files have one a line."""

    model_config = SettingsConfigDict(
        env_prefix="FHE_LLM_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    model: str = "smollm2-135m"
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    gpu_memory: ByteSize | None = Field(default=None, ge=256 * MIB)
    preset: str = "default"
    threads: int | None = Field(default=None, ge=1, le=1024)
    data_dir: Path = Field(default_factory=_default_data_dir)
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    api_key_file: Path | None = None
    key_cache_bytes: int = Field(default=4096 * MIB, ge=MIB)
    prepared_key_bytes: int = Field(default=1024 * MIB, ge=MIB)
    max_body_bytes: int = Field(default=32 * MIB, ge=64 * 1024, le=1024 * MIB)
    max_connections: int = Field(default=128, ge=1, le=65536)
    ledger: SecretStr | None = None
    max_queued_jobs: int = Field(default=1024, ge=1, le=1 << 20)

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str) -> str:
        return preset(value).name

    def accepted_api_keys(self) -> tuple[str, ...]:
        """Keys given directly and those in the key file (one per line, ``#`` starts a comment).

        Raises ``OSError`` when the file cannot be read, ``ValueError`` when it is named but holds no key.
        """
        keys = [key.get_secret_value() for key in self.api_keys]
        if self.api_key_file is not None:
            lines = (line.strip() for line in self.api_key_file.read_text(encoding="utf-8").splitlines())
            from_file = [line for line in lines if line and not line.startswith("#")]
            if not from_file:
                raise ValueError("cannot use the API key file: it holds no key. Put one key on each line.")
            keys += from_file
        return tuple(dict.fromkeys(keys))

    def ledger_place(self) -> str:
        """Where work is counted: the path or Redis URL given, else a file in the data directory."""
        return self.ledger.get_secret_value() if self.ledger else str(self.data_dir / "ledger.sqlite")

    @property
    def loopback(self) -> bool:
        """Whether ``host`` can only be reached from this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
