from mev.wire.pb import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tip(_message.Message):
    __slots__ = ("account", "service", "lamports")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    LAMPORTS_FIELD_NUMBER: _ClassVar[int]
    account: str
    service: str
    lamports: int
    def __init__(self, account: _Optional[str] = ..., service: _Optional[str] = ..., lamports: _Optional[int] = ...) -> None: ...

class Arbitrage(_message.Message):
    __slots__ = ("signature", "slot", "block_time_ns", "signer", "venues", "pools", "profit_mint", "profit_amount", "profit_decimals", "fee_lamports", "tip_lamports", "aggregators", "unknown_programs", "compute_units", "tips")
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    VENUES_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    PROFIT_MINT_FIELD_NUMBER: _ClassVar[int]
    PROFIT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PROFIT_DECIMALS_FIELD_NUMBER: _ClassVar[int]
    FEE_LAMPORTS_FIELD_NUMBER: _ClassVar[int]
    TIP_LAMPORTS_FIELD_NUMBER: _ClassVar[int]
    AGGREGATORS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_PROGRAMS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_UNITS_FIELD_NUMBER: _ClassVar[int]
    TIPS_FIELD_NUMBER: _ClassVar[int]
    signature: str
    slot: int
    block_time_ns: int
    signer: str
    venues: _containers.RepeatedScalarFieldContainer[str]
    pools: _containers.RepeatedScalarFieldContainer[str]
    profit_mint: str
    profit_amount: int
    profit_decimals: int
    fee_lamports: int
    tip_lamports: int
    aggregators: _containers.RepeatedScalarFieldContainer[str]
    unknown_programs: _containers.RepeatedScalarFieldContainer[str]
    compute_units: int
    tips: _containers.RepeatedCompositeFieldContainer[Tip]
    def __init__(self, signature: _Optional[str] = ..., slot: _Optional[int] = ..., block_time_ns: _Optional[int] = ..., signer: _Optional[str] = ..., venues: _Optional[_Iterable[str]] = ..., pools: _Optional[_Iterable[str]] = ..., profit_mint: _Optional[str] = ..., profit_amount: _Optional[int] = ..., profit_decimals: _Optional[int] = ..., fee_lamports: _Optional[int] = ..., tip_lamports: _Optional[int] = ..., aggregators: _Optional[_Iterable[str]] = ..., unknown_programs: _Optional[_Iterable[str]] = ..., compute_units: _Optional[int] = ..., tips: _Optional[_Iterable[_Union[Tip, _Mapping]]] = ...) -> None: ...

class Sandwich(_message.Message):
    __slots__ = ("signature", "slot", "block_time_ns", "signer", "venues", "pools", "profit_mint", "profit_amount", "profit_decimals", "fee_lamports", "tip_lamports", "back_signature", "victim_signatures", "victims", "tips")
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    VENUES_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    PROFIT_MINT_FIELD_NUMBER: _ClassVar[int]
    PROFIT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PROFIT_DECIMALS_FIELD_NUMBER: _ClassVar[int]
    FEE_LAMPORTS_FIELD_NUMBER: _ClassVar[int]
    TIP_LAMPORTS_FIELD_NUMBER: _ClassVar[int]
    BACK_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    VICTIM_SIGNATURES_FIELD_NUMBER: _ClassVar[int]
    VICTIMS_FIELD_NUMBER: _ClassVar[int]
    TIPS_FIELD_NUMBER: _ClassVar[int]
    signature: str
    slot: int
    block_time_ns: int
    signer: str
    venues: _containers.RepeatedScalarFieldContainer[str]
    pools: _containers.RepeatedScalarFieldContainer[str]
    profit_mint: str
    profit_amount: int
    profit_decimals: int
    fee_lamports: int
    tip_lamports: int
    back_signature: str
    victim_signatures: _containers.RepeatedScalarFieldContainer[str]
    victims: _containers.RepeatedScalarFieldContainer[str]
    tips: _containers.RepeatedCompositeFieldContainer[Tip]
    def __init__(self, signature: _Optional[str] = ..., slot: _Optional[int] = ..., block_time_ns: _Optional[int] = ..., signer: _Optional[str] = ..., venues: _Optional[_Iterable[str]] = ..., pools: _Optional[_Iterable[str]] = ..., profit_mint: _Optional[str] = ..., profit_amount: _Optional[int] = ..., profit_decimals: _Optional[int] = ..., fee_lamports: _Optional[int] = ..., tip_lamports: _Optional[int] = ..., back_signature: _Optional[str] = ..., victim_signatures: _Optional[_Iterable[str]] = ..., victims: _Optional[_Iterable[str]] = ..., tips: _Optional[_Iterable[_Union[Tip, _Mapping]]] = ...) -> None: ...

class Liquidation(_message.Message):
    __slots__ = ("signature", "slot", "block_time_ns", "signer", "venues", "pools", "profit_mint", "profit_amount", "profit_decimals", "fee_lamports", "tip_lamports", "protocol", "borrower", "repaid_mint", "repaid_amount", "seized_mint", "seized_amount", "tips")
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    VENUES_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    PROFIT_MINT_FIELD_NUMBER: _ClassVar[int]
    PROFIT_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PROFIT_DECIMALS_FIELD_NUMBER: _ClassVar[int]
    FEE_LAMPORTS_FIELD_NUMBER: _ClassVar[int]
    TIP_LAMPORTS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    BORROWER_FIELD_NUMBER: _ClassVar[int]
    REPAID_MINT_FIELD_NUMBER: _ClassVar[int]
    REPAID_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    SEIZED_MINT_FIELD_NUMBER: _ClassVar[int]
    SEIZED_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    TIPS_FIELD_NUMBER: _ClassVar[int]
    signature: str
    slot: int
    block_time_ns: int
    signer: str
    venues: _containers.RepeatedScalarFieldContainer[str]
    pools: _containers.RepeatedScalarFieldContainer[str]
    profit_mint: str
    profit_amount: int
    profit_decimals: int
    fee_lamports: int
    tip_lamports: int
    protocol: str
    borrower: str
    repaid_mint: str
    repaid_amount: int
    seized_mint: str
    seized_amount: int
    tips: _containers.RepeatedCompositeFieldContainer[Tip]
    def __init__(self, signature: _Optional[str] = ..., slot: _Optional[int] = ..., block_time_ns: _Optional[int] = ..., signer: _Optional[str] = ..., venues: _Optional[_Iterable[str]] = ..., pools: _Optional[_Iterable[str]] = ..., profit_mint: _Optional[str] = ..., profit_amount: _Optional[int] = ..., profit_decimals: _Optional[int] = ..., fee_lamports: _Optional[int] = ..., tip_lamports: _Optional[int] = ..., protocol: _Optional[str] = ..., borrower: _Optional[str] = ..., repaid_mint: _Optional[str] = ..., repaid_amount: _Optional[int] = ..., seized_mint: _Optional[str] = ..., seized_amount: _Optional[int] = ..., tips: _Optional[_Iterable[_Union[Tip, _Mapping]]] = ...) -> None: ...

class RouteStep(_message.Message):
    __slots__ = ("dex", "pool", "token_in", "token_out", "amount_in", "amount_out")
    DEX_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_OUT_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_IN_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_OUT_FIELD_NUMBER: _ClassVar[int]
    dex: str
    pool: str
    token_in: str
    token_out: str
    amount_in: int
    amount_out: int
    def __init__(self, dex: _Optional[str] = ..., pool: _Optional[str] = ..., token_in: _Optional[str] = ..., token_out: _Optional[str] = ..., amount_in: _Optional[int] = ..., amount_out: _Optional[int] = ...) -> None: ...

class Opportunity(_message.Message):
    __slots__ = ("id", "slot", "detected_at_ns", "kind", "route", "expected_profit_lamports", "probability", "fee_lamports", "tip_lamports", "deadline_ns", "features", "feature_schema", "agent_id", "simulated")
    ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    DETECTED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_PROFIT_LAMPORTS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    FEE_LAMPORTS_FIELD_NUMBER: _ClassVar[int]
    TIP_LAMPORTS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_NS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    FEATURE_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    id: str
    slot: int
    detected_at_ns: int
    kind: str
    route: _containers.RepeatedCompositeFieldContainer[RouteStep]
    expected_profit_lamports: int
    probability: float
    fee_lamports: int
    tip_lamports: int
    deadline_ns: int
    features: _containers.RepeatedScalarFieldContainer[float]
    feature_schema: str
    agent_id: str
    simulated: bool
    def __init__(self, id: _Optional[str] = ..., slot: _Optional[int] = ..., detected_at_ns: _Optional[int] = ..., kind: _Optional[str] = ..., route: _Optional[_Iterable[_Union[RouteStep, _Mapping]]] = ..., expected_profit_lamports: _Optional[int] = ..., probability: _Optional[float] = ..., fee_lamports: _Optional[int] = ..., tip_lamports: _Optional[int] = ..., deadline_ns: _Optional[int] = ..., features: _Optional[_Iterable[float]] = ..., feature_schema: _Optional[str] = ..., agent_id: _Optional[str] = ..., simulated: _Optional[bool] = ...) -> None: ...

class Bundle(_message.Message):
    __slots__ = ("bundle_id", "opportunity_id", "agent_id", "slot", "landed", "profit_lamports", "tip_lamports", "latency_ns", "error", "simulated")
    BUNDLE_ID_FIELD_NUMBER: _ClassVar[int]
    OPPORTUNITY_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LANDED_FIELD_NUMBER: _ClassVar[int]
    PROFIT_LAMPORTS_FIELD_NUMBER: _ClassVar[int]
    TIP_LAMPORTS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_NS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    bundle_id: str
    opportunity_id: str
    agent_id: str
    slot: int
    landed: bool
    profit_lamports: int
    tip_lamports: int
    latency_ns: int
    error: str
    simulated: bool
    def __init__(self, bundle_id: _Optional[str] = ..., opportunity_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., slot: _Optional[int] = ..., landed: _Optional[bool] = ..., profit_lamports: _Optional[int] = ..., tip_lamports: _Optional[int] = ..., latency_ns: _Optional[int] = ..., error: _Optional[str] = ..., simulated: _Optional[bool] = ...) -> None: ...

class Tick(_message.Message):
    __slots__ = ("market_id", "timestamp_ns", "bid_price", "ask_price", "bid_size", "ask_size", "last_price", "simulated")
    MARKET_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_NS_FIELD_NUMBER: _ClassVar[int]
    BID_PRICE_FIELD_NUMBER: _ClassVar[int]
    ASK_PRICE_FIELD_NUMBER: _ClassVar[int]
    BID_SIZE_FIELD_NUMBER: _ClassVar[int]
    ASK_SIZE_FIELD_NUMBER: _ClassVar[int]
    LAST_PRICE_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    market_id: str
    timestamp_ns: int
    bid_price: float
    ask_price: float
    bid_size: float
    ask_size: float
    last_price: float
    simulated: bool
    def __init__(self, market_id: _Optional[str] = ..., timestamp_ns: _Optional[int] = ..., bid_price: _Optional[float] = ..., ask_price: _Optional[float] = ..., bid_size: _Optional[float] = ..., ask_size: _Optional[float] = ..., last_price: _Optional[float] = ..., simulated: _Optional[bool] = ...) -> None: ...

class AgentMetrics(_message.Message):
    __slots__ = ("agent_id", "timestamp_ns", "gauges", "counters")
    class GaugesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_NS_FIELD_NUMBER: _ClassVar[int]
    GAUGES_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    timestamp_ns: int
    gauges: _containers.ScalarMap[str, float]
    counters: _containers.ScalarMap[str, int]
    def __init__(self, agent_id: _Optional[str] = ..., timestamp_ns: _Optional[int] = ..., gauges: _Optional[_Mapping[str, float]] = ..., counters: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("id", "opportunity_id", "agent_id", "slot", "scored_at_ns", "model_id", "score", "shadow_model_id", "shadow_score", "simulated")
    ID_FIELD_NUMBER: _ClassVar[int]
    OPPORTUNITY_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    SCORED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SHADOW_SCORE_FIELD_NUMBER: _ClassVar[int]
    SIMULATED_FIELD_NUMBER: _ClassVar[int]
    id: str
    opportunity_id: str
    agent_id: str
    slot: int
    scored_at_ns: int
    model_id: str
    score: float
    shadow_model_id: str
    shadow_score: float
    simulated: bool
    def __init__(self, id: _Optional[str] = ..., opportunity_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., slot: _Optional[int] = ..., scored_at_ns: _Optional[int] = ..., model_id: _Optional[str] = ..., score: _Optional[float] = ..., shadow_model_id: _Optional[str] = ..., shadow_score: _Optional[float] = ..., simulated: _Optional[bool] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "timestamp_ns", "kind", "state", "attempt", "done", "total", "note", "error_code")
    ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_NS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    id: str
    timestamp_ns: int
    kind: str
    state: str
    attempt: int
    done: float
    total: float
    note: str
    error_code: str
    def __init__(self, id: _Optional[str] = ..., timestamp_ns: _Optional[int] = ..., kind: _Optional[str] = ..., state: _Optional[str] = ..., attempt: _Optional[int] = ..., done: _Optional[float] = ..., total: _Optional[float] = ..., note: _Optional[str] = ..., error_code: _Optional[str] = ...) -> None: ...
