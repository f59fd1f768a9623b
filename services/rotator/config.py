"""What a person may set of the rotator."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from services.rotator.backups import check_state_folder
from services.rotator.drivers.registry import DriverSettings
from shared.config.file_checks import FileCheck, check_writable_folder
from shared.config.settings import CommandSettings, Duration, FilePath
from shared.keyring.administration import MAX_PAGE_SIZE
from shared.kms.registry import KeySettings, PreviousKeySettings


def _check_metrics_file(file: Path) -> tuple[()]:
    check_writable_folder(file.parent)
    return ()


class RotatorSettings(CommandSettings):
    """Every setting of the rotator."""

    service_name: ClassVar[str] = "rotator"

    driver: DriverSettings
    kms: KeySettings
    previous_kms: PreviousKeySettings = ()
    """Keys that only unwrap, until `rewrap-kek` has moved every data key to `kms`."""
    other_keyrings: tuple[DriverSettings, ...] | None = None
    """Further keyrings that the same KMS key wraps; None if nobody has said whether there are any."""
    state_dir: Annotated[FilePath, FileCheck(check_state_folder, "checks later")]
    """Encrypted backups and reports; made if missing."""
    metrics_file: Annotated[FilePath, FileCheck(_check_metrics_file)] | None = None
    """Where the metrics of a table go, for the textfile collector of node_exporter."""
    kms_timeout: Duration = Field(5.0, validate_default=False)
    """Of one call."""
    lease: Duration = Field(60.0, le=3600, validate_default=False)
    """How long nobody else may rotate once this runner was killed."""
    batch_size: int = Field(500, ge=1, le=MAX_PAGE_SIZE)
    """Data keys in one step."""
    primary_checks: int = Field(3, ge=1)
    """Answers in a row in which Encrypt has to use the new primary version."""
    primary_check_interval: Duration = Field(1.0, validate_default=False)
    """Between two of them."""
    primary_timeout: Duration = Field(600.0, validate_default=False)
    """For all of them."""
    verify_mode: Literal["sample", "full"] = "sample"
    """Of the records; every data key is unwrapped in both."""
    verify_attempts: int = Field(3, ge=1)
    verify_interval: Duration = Field(5.0, validate_default=False)
    """Between two attempts."""
    new_dek_min_age: Duration = Field(86400.0, validate_default=False)
    """A data key that `new-dek` made more recently than that is not replaced by the next one."""

    @model_validator(mode="after")
    def _check_previous_keys(self) -> Self:
        if self.previous_kms and not self.driver.has_own_keys:
            raise ValueError("previous_kms: the driver table has one KMS key only; expected another driver")
        return self

    @model_validator(mode="after")
    def _check_metrics(self) -> Self:
        if self.metrics_file and self.driver.has_own_keys:
            raise ValueError("metrics_file: is for the driver table; the service itself shows the metrics of a keyring")
        if self.metrics_file and self.metrics_file.suffix != ".prom":
            raise ValueError(f"metrics_file: expected SERVICE.prom, got {self.metrics_file.name}")
        return self

    @model_validator(mode="after")
    def _check_unique_keyrings(self) -> Self:
        keyrings = [each.location for each in (self.driver, *(self.other_keyrings or ()))]
        if len(keyrings) > len(set(keyrings)):
            raise ValueError("other_keyrings: expected each keyring once, and that of `driver` not at all")
        return self
