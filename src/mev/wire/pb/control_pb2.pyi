from mev.wire.pb import envelope_pb2 as _envelope_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Level(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEVEL_UNSPECIFIED: _ClassVar[Level]
    HALTED: _ClassVar[Level]
    REDUCING: _ClassVar[Level]
    NO_NEW: _ClassVar[Level]
    ACTIVE: _ClassVar[Level]

class ModelRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRODUCTION: _ClassVar[ModelRole]
    SHADOW: _ClassVar[ModelRole]

class Result(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESULT_UNSPECIFIED: _ClassVar[Result]
    ACK: _ClassVar[Result]
    NACK: _ClassVar[Result]
    STATUS: _ClassVar[Result]

class Tighter(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIGHTER_UNSPECIFIED: _ClassVar[Tighter]
    TIGHTER_HIGHER: _ClassVar[Tighter]
    TIGHTER_LOWER: _ClassVar[Tighter]
    TIGHTER_NEITHER: _ClassVar[Tighter]
LEVEL_UNSPECIFIED: Level
HALTED: Level
REDUCING: Level
NO_NEW: Level
ACTIVE: Level
PRODUCTION: ModelRole
SHADOW: ModelRole
RESULT_UNSPECIFIED: Result
ACK: Result
NACK: Result
STATUS: Result
TIGHTER_UNSPECIFIED: Tighter
TIGHTER_HIGHER: Tighter
TIGHTER_LOWER: Tighter
TIGHTER_NEITHER: Tighter

class Version(_message.Message):
    __slots__ = ("epoch", "counter")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    counter: int
    def __init__(self, epoch: _Optional[int] = ..., counter: _Optional[int] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("all", "modules", "agent_ids")
    ALL_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    AGENT_IDS_FIELD_NUMBER: _ClassVar[int]
    all: bool
    modules: _containers.RepeatedScalarFieldContainer[str]
    agent_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, all: _Optional[bool] = ..., modules: _Optional[_Iterable[str]] = ..., agent_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Issuer(_message.Message):
    __slots__ = ("principal", "approvers")
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    APPROVERS_FIELD_NUMBER: _ClassVar[int]
    principal: str
    approvers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, principal: _Optional[str] = ..., approvers: _Optional[_Iterable[str]] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("id", "version", "target", "issued_at_ns", "expires_at_ns", "priority", "issuer", "idempotency_key", "request_sha256", "action", "level", "policy", "model", "config")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_NS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    id: str
    version: Version
    target: Target
    issued_at_ns: int
    expires_at_ns: int
    priority: int
    issuer: Issuer
    idempotency_key: str
    request_sha256: bytes
    action: ModuleAction
    level: SetLevel
    policy: SetPolicy
    model: SwapModel
    config: SetConfig
    def __init__(self, id: _Optional[str] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., target: _Optional[_Union[Target, _Mapping]] = ..., issued_at_ns: _Optional[int] = ..., expires_at_ns: _Optional[int] = ..., priority: _Optional[int] = ..., issuer: _Optional[_Union[Issuer, _Mapping]] = ..., idempotency_key: _Optional[str] = ..., request_sha256: _Optional[bytes] = ..., action: _Optional[_Union[ModuleAction, _Mapping]] = ..., level: _Optional[_Union[SetLevel, _Mapping]] = ..., policy: _Optional[_Union[SetPolicy, _Mapping]] = ..., model: _Optional[_Union[SwapModel, _Mapping]] = ..., config: _Optional[_Union[SetConfig, _Mapping]] = ...) -> None: ...

class ModuleAction(_message.Message):
    __slots__ = ("module", "action", "params_json")
    MODULE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    PARAMS_JSON_FIELD_NUMBER: _ClassVar[int]
    module: str
    action: str
    params_json: str
    def __init__(self, module: _Optional[str] = ..., action: _Optional[str] = ..., params_json: _Optional[str] = ...) -> None: ...

class SetLevel(_message.Message):
    __slots__ = ("level", "reason", "until_ns")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UNTIL_NS_FIELD_NUMBER: _ClassVar[int]
    level: Level
    reason: str
    until_ns: int
    def __init__(self, level: _Optional[_Union[Level, str]] = ..., reason: _Optional[str] = ..., until_ns: _Optional[int] = ...) -> None: ...

class SetPolicy(_message.Message):
    __slots__ = ("policy_id", "policy_type", "thresholds", "rules", "enabled", "effective_from_ns")
    class ThresholdsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    POLICY_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_TYPE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_FROM_NS_FIELD_NUMBER: _ClassVar[int]
    policy_id: str
    policy_type: str
    thresholds: _containers.ScalarMap[str, float]
    rules: _containers.RepeatedCompositeFieldContainer[PolicyRule]
    enabled: bool
    effective_from_ns: int
    def __init__(self, policy_id: _Optional[str] = ..., policy_type: _Optional[str] = ..., thresholds: _Optional[_Mapping[str, float]] = ..., rules: _Optional[_Iterable[_Union[PolicyRule, _Mapping]]] = ..., enabled: _Optional[bool] = ..., effective_from_ns: _Optional[int] = ...) -> None: ...

class PolicyRule(_message.Message):
    __slots__ = ("field", "operator", "value")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    field: str
    operator: str
    value: str
    def __init__(self, field: _Optional[str] = ..., operator: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class SwapModel(_message.Message):
    __slots__ = ("model_id", "model_path", "version", "sha256", "role", "share")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    model_path: str
    version: str
    sha256: bytes
    role: ModelRole
    share: float
    def __init__(self, model_id: _Optional[str] = ..., model_path: _Optional[str] = ..., version: _Optional[str] = ..., sha256: _Optional[bytes] = ..., role: _Optional[_Union[ModelRole, str]] = ..., share: _Optional[float] = ...) -> None: ...

class SetConfig(_message.Message):
    __slots__ = ("config_key", "config_value_json", "hot_reload")
    CONFIG_KEY_FIELD_NUMBER: _ClassVar[int]
    CONFIG_VALUE_JSON_FIELD_NUMBER: _ClassVar[int]
    HOT_RELOAD_FIELD_NUMBER: _ClassVar[int]
    config_key: str
    config_value_json: str
    hot_reload: bool
    def __init__(self, config_key: _Optional[str] = ..., config_value_json: _Optional[str] = ..., hot_reload: _Optional[bool] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("version", "target", "issued_at_ns", "expires_at_ns")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_NS_FIELD_NUMBER: _ClassVar[int]
    version: Version
    target: Target
    issued_at_ns: int
    expires_at_ns: int
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ..., target: _Optional[_Union[Target, _Mapping]] = ..., issued_at_ns: _Optional[int] = ..., expires_at_ns: _Optional[int] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("version", "issued_at_ns", "commands")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    version: Version
    issued_at_ns: int
    commands: _containers.RepeatedCompositeFieldContainer[_envelope_pb2.Envelope]
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ..., issued_at_ns: _Optional[int] = ..., commands: _Optional[_Iterable[_Union[_envelope_pb2.Envelope, _Mapping]]] = ...) -> None: ...

class Running(_message.Message):
    __slots__ = ("level", "ordered_level", "policies", "configs", "model_id", "model_version", "model_sha256", "lease_expires_at_ns", "stepped_down", "key_epoch", "models", "missing_policies", "blocked_by")
    class PoliciesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Version
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Version, _Mapping]] = ...) -> None: ...
    class ConfigsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Version
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Version, _Mapping]] = ...) -> None: ...
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    ORDERED_LEVEL_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    CONFIGS_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    LEASE_EXPIRES_AT_NS_FIELD_NUMBER: _ClassVar[int]
    STEPPED_DOWN_FIELD_NUMBER: _ClassVar[int]
    KEY_EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    MISSING_POLICIES_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_BY_FIELD_NUMBER: _ClassVar[int]
    level: Level
    ordered_level: Level
    policies: _containers.MessageMap[str, Version]
    configs: _containers.MessageMap[str, Version]
    model_id: str
    model_version: str
    model_sha256: bytes
    lease_expires_at_ns: int
    stepped_down: str
    key_epoch: int
    models: _containers.RepeatedCompositeFieldContainer[ModelUse]
    missing_policies: _containers.RepeatedScalarFieldContainer[str]
    blocked_by: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, level: _Optional[_Union[Level, str]] = ..., ordered_level: _Optional[_Union[Level, str]] = ..., policies: _Optional[_Mapping[str, Version]] = ..., configs: _Optional[_Mapping[str, Version]] = ..., model_id: _Optional[str] = ..., model_version: _Optional[str] = ..., model_sha256: _Optional[bytes] = ..., lease_expires_at_ns: _Optional[int] = ..., stepped_down: _Optional[str] = ..., key_epoch: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelUse, _Mapping]]] = ..., missing_policies: _Optional[_Iterable[str]] = ..., blocked_by: _Optional[_Iterable[str]] = ...) -> None: ...

class ModelUse(_message.Message):
    __slots__ = ("role", "model_id", "sha256", "since_ns", "scored", "failed", "latency_p50_us", "latency_p99_us", "mean_score", "score_psi", "feature_psi", "unfit")
    class FeaturePsiEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SINCE_NS_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P50_US_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P99_US_FIELD_NUMBER: _ClassVar[int]
    MEAN_SCORE_FIELD_NUMBER: _ClassVar[int]
    SCORE_PSI_FIELD_NUMBER: _ClassVar[int]
    FEATURE_PSI_FIELD_NUMBER: _ClassVar[int]
    UNFIT_FIELD_NUMBER: _ClassVar[int]
    role: ModelRole
    model_id: str
    sha256: bytes
    since_ns: int
    scored: int
    failed: int
    latency_p50_us: float
    latency_p99_us: float
    mean_score: float
    score_psi: float
    feature_psi: _containers.ScalarMap[str, float]
    unfit: int
    def __init__(self, role: _Optional[_Union[ModelRole, str]] = ..., model_id: _Optional[str] = ..., sha256: _Optional[bytes] = ..., since_ns: _Optional[int] = ..., scored: _Optional[int] = ..., failed: _Optional[int] = ..., latency_p50_us: _Optional[float] = ..., latency_p99_us: _Optional[float] = ..., mean_score: _Optional[float] = ..., score_psi: _Optional[float] = ..., feature_psi: _Optional[_Mapping[str, float]] = ..., unfit: _Optional[int] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("agent_id", "module", "agent_counter", "reported_at_ns", "command_id", "result", "reason_code", "detail", "received_at_ns", "applied_at_ns", "running", "uptime_ns")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    AGENT_COUNTER_FIELD_NUMBER: _ClassVar[int]
    REPORTED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    APPLIED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    UPTIME_NS_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    module: str
    agent_counter: int
    reported_at_ns: int
    command_id: str
    result: Result
    reason_code: str
    detail: str
    received_at_ns: int
    applied_at_ns: int
    running: Running
    uptime_ns: int
    def __init__(self, agent_id: _Optional[str] = ..., module: _Optional[str] = ..., agent_counter: _Optional[int] = ..., reported_at_ns: _Optional[int] = ..., command_id: _Optional[str] = ..., result: _Optional[_Union[Result, str]] = ..., reason_code: _Optional[str] = ..., detail: _Optional[str] = ..., received_at_ns: _Optional[int] = ..., applied_at_ns: _Optional[int] = ..., running: _Optional[_Union[Running, _Mapping]] = ..., uptime_ns: _Optional[int] = ...) -> None: ...

class Enrolment(_message.Message):
    __slots__ = ("agent_id", "module", "public_key", "software_version", "actions", "policy_types", "enrolled_at_ns", "revoked", "policies", "configs")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    POLICY_TYPES_FIELD_NUMBER: _ClassVar[int]
    ENROLLED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    CONFIGS_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    module: str
    public_key: bytes
    software_version: str
    actions: _containers.RepeatedCompositeFieldContainer[DeclaredAction]
    policy_types: _containers.RepeatedScalarFieldContainer[str]
    enrolled_at_ns: int
    revoked: bool
    policies: _containers.RepeatedCompositeFieldContainer[DeclaredPolicyType]
    configs: _containers.RepeatedCompositeFieldContainer[DeclaredLimit]
    def __init__(self, agent_id: _Optional[str] = ..., module: _Optional[str] = ..., public_key: _Optional[bytes] = ..., software_version: _Optional[str] = ..., actions: _Optional[_Iterable[_Union[DeclaredAction, _Mapping]]] = ..., policy_types: _Optional[_Iterable[str]] = ..., enrolled_at_ns: _Optional[int] = ..., revoked: _Optional[bool] = ..., policies: _Optional[_Iterable[_Union[DeclaredPolicyType, _Mapping]]] = ..., configs: _Optional[_Iterable[_Union[DeclaredLimit, _Mapping]]] = ...) -> None: ...

class DeclaredLimit(_message.Message):
    __slots__ = ("name", "tighter", "initial")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TIGHTER_FIELD_NUMBER: _ClassVar[int]
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    tighter: Tighter
    initial: float
    def __init__(self, name: _Optional[str] = ..., tighter: _Optional[_Union[Tighter, str]] = ..., initial: _Optional[float] = ...) -> None: ...

class DeclaredPolicyType(_message.Message):
    __slots__ = ("name", "thresholds", "required")
    NAME_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    name: str
    thresholds: _containers.RepeatedCompositeFieldContainer[DeclaredLimit]
    required: bool
    def __init__(self, name: _Optional[str] = ..., thresholds: _Optional[_Iterable[_Union[DeclaredLimit, _Mapping]]] = ..., required: _Optional[bool] = ...) -> None: ...

class DeclaredAction(_message.Message):
    __slots__ = ("name", "description", "params_schema_json", "raises_risk")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMS_SCHEMA_JSON_FIELD_NUMBER: _ClassVar[int]
    RAISES_RISK_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    params_schema_json: str
    raises_risk: bool
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., params_schema_json: _Optional[str] = ..., raises_risk: _Optional[bool] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("id", "draft", "approvals_required", "proposed_at_ns", "expires_at_ns", "raises", "deployment_json")
    ID_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    APPROVALS_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_NS_FIELD_NUMBER: _ClassVar[int]
    RAISES_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_JSON_FIELD_NUMBER: _ClassVar[int]
    id: str
    draft: Command
    approvals_required: int
    proposed_at_ns: int
    expires_at_ns: int
    raises: _containers.RepeatedScalarFieldContainer[str]
    deployment_json: str
    def __init__(self, id: _Optional[str] = ..., draft: _Optional[_Union[Command, _Mapping]] = ..., approvals_required: _Optional[int] = ..., proposed_at_ns: _Optional[int] = ..., expires_at_ns: _Optional[int] = ..., raises: _Optional[_Iterable[str]] = ..., deployment_json: _Optional[str] = ...) -> None: ...

class Vote(_message.Message):
    __slots__ = ("proposal_id", "principal", "approve", "at_ns", "command_id")
    PROPOSAL_ID_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    APPROVE_FIELD_NUMBER: _ClassVar[int]
    AT_NS_FIELD_NUMBER: _ClassVar[int]
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    proposal_id: str
    principal: str
    approve: bool
    at_ns: int
    command_id: str
    def __init__(self, proposal_id: _Optional[str] = ..., principal: _Optional[str] = ..., approve: _Optional[bool] = ..., at_ns: _Optional[int] = ..., command_id: _Optional[str] = ...) -> None: ...
