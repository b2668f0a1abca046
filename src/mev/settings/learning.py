"""Settings of trainings and exports."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from mev.core.confine import OTHER_USER
from mev.settings.types import FilePath, Names, VariableGroup


class TrainingsVariables(VariableGroup):
    """Trainings, and the Dask clusters that they may use."""

    train_schedulers: Names = Field(
        (),
        description=(
            "Dask schedulers that trainings may use, tls://, or tcp:// on this machine;"
            " comma-separated. They can run code here."
        ),
    )
    train_tls_ca_file: FilePath | None = Field(
        None, description="PEM of the authority that signed the certificates of the Dask cluster."
    )
    train_tls_cert_file: FilePath | None = Field(
        None, description="PEM of the certificate that trainings show to the scheduler."
    )
    train_tls_key_file: FilePath | None = Field(
        None, description="PEM of its private key, which the training's process gets."
    )

    train_confinement: Literal["auto", "required"] = Field(
        "auto",
        description=(
            "auto: confine trainings as far as the system supports it; required: refuse trainings"
            " that could read keys."
        ),
    )
    train_uid: int = Field(
        OTHER_USER,
        ge=1,
        lt=2**32 - 1,
        description=(
            "User id that runs trainings where the system runs as root; must not be used by"
            " anything else."
        ),
    )
    train_jobs_per_principal: int = Field(
        4, ge=1, description="Queued and running trainings of one person, over all keys."
    )
    train_search_max_s: float = Field(
        4 * 3600.0,
        gt=0,
        le=7 * 86_400,
        description="Longest duration of a parameter search.",
    )

    mev_native: bool = Field(
        True,
        description=(
            "Use the native module where it is installed; 0: Python code does its work, slower."
        ),
    )

    @property
    def train_tls_files(self) -> tuple[Path, ...]:
        """Authority, certificate and key for schedulers, none unless all are set."""
        files = (self.train_tls_ca_file, self.train_tls_cert_file, self.train_tls_key_file)
        return tuple(file for file in files if file) if all(files) else ()


class ExportsVariables(VariableGroup):
    """Exports of datasets."""

    export_jobs_per_principal: int = Field(
        4, ge=1, description="Queued and running exports of one person, over all keys."
    )
    export_bytes_per_principal: int = Field(
        50 << 30, ge=1 << 20, description="Bytes of exports stored for one person, over all keys."
    )
    export_part_rows_min: int = Field(
        1_000,
        ge=1,
        le=1_000_000,
        description="Smallest number of rows per file that an export may request.",
    )
    export_reserve_bytes: int = Field(
        256 << 20,
        ge=0,
        description=(
            "Free disk space that exports leave for commands, the audit trail and tables, in bytes."
        ),
    )
    export_expires_s: float = Field(
        7 * 86_400, ge=60, le=366 * 86_400, description="Time the files of an export are kept."
    )
    export_retry_s: float = Field(
        600,
        ge=0,
        description="Time an export waits for an unavailable ClickHouse before it fails.",
    )
    export_memory_bytes: int = Field(
        1 << 30, ge=64 << 20, description="Memory limit of an export query in ClickHouse, in bytes."
    )
