"""Settings of control and of the audit trail."""

from pydantic import Field

from mev.settings.types import Seconds, VariableGroup


class ControlVariables(VariableGroup):
    """Commands, leases, approvals and deployments."""

    approvals_required: int | None = Field(
        None,
        ge=1,
        le=10,
        description=(
            "Approvals needed before agents may take more risk; 1 while any service is embedded,"
            " else 2."
        ),
    )
    approval_ttl_s: Seconds = Field(3600.0, description="Time a proposal waits for approval.")
    command_ttl_s: Seconds = Field(
        60.0, description="Time after issue during which a command is accepted."
    )
    command_publish_wait_s: Seconds = Field(
        2.0, description="Time a stop waits for the brokers before it is answered."
    )
    lease_ttl_s: Seconds = Field(
        10.0, description="Time an agent may trade without contact to the control plane."
    )
    lease_renew_s: Seconds = Field(3.0, description="Interval between renewals of the lease.")
    agent_forget_days: float = Field(
        30.0,
        gt=0,
        le=3660,
        description="Days without contact after which an agent is unenrolled.",
    )
    action_check_s: Seconds = Field(
        1.0,
        description=(
            "Timeout of the validation of action parameters; parameters not validated by then are"
            " sent unchecked."
        ),
    )
    action_schema_max_bytes: int = Field(
        16 << 10,
        ge=256,
        le=256 << 10,
        description="Largest schema of an action declared by an agent, in bytes.",
    )
    action_params_max_bytes: int = Field(
        16 << 10, ge=256, le=128 << 10, description="Largest parameters of an action, in bytes."
    )
    control_journal_bytes: int = Field(
        16 << 20,
        ge=4096,
        description=(
            "Size of the control journal that triggers compaction, in bytes; after that, twice the"
            " compacted size."
        ),
    )
    report_interval_s: Seconds = Field(
        2.0,
        description=(
            "Interval between an agent's reports; after three missed ones it counts as silent."
        ),
    )
    deploy_watch_s: Seconds = Field(
        1.0, description="Interval between checks of model deployments."
    )


class AuditVariables(VariableGroup):
    """The audit trail."""

    audit_checkpoint_s: Seconds = Field(
        10.0, description="Interval between signed checkpoints of the audit trail while it grows."
    )
    audit_retention_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description=(
            "Days after which sealed audit files are removed; 0 for never. Proofs stay valid."
        ),
    )
