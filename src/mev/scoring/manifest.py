"""Signed manifest of a model: JSON in a DSSE envelope, signed by a key of the role `model`."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import orjson

from mev.crypto.envelope import MAX_ENVELOPE_BYTES, Signer, parse
from mev.crypto.errors import EnvelopeError
from mev.crypto.trust import TrustStore
from mev.scoring.drift import Baseline
from mev.scoring.errors import BadManifestError, UnsignedManifestError
from mev.scoring.predictor import Rows, Scores
from mev.wire.pb.envelope_pb2 import Envelope, Signature

PAYLOAD_TYPE: Final = "application/vnd.mev.model+json"
ABI: Final = 1
MAX_BYTES: Final = 2 * MAX_ENVELOPE_BYTES
FORMS: Final = ("ubj", "mevt", "so")
"""Forms of a model's file, by their suffixes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Number of frozen rows scored by every form, and the largest difference of a score."""

    rows: int
    max_abs_diff: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Manifest of a model; its id is the SHA-256 of the XGBoost file.

    `features` are the columns of a row, in order; `golden_rows` are rows with the scores that every
    form must reproduce.
    """

    model_id: str
    created_at: str
    objective: str
    features: tuple[str, ...]
    feature_schema: str
    feature_schema_hash: str
    trees: int
    mevt_sha256: str | None
    so_sha256: str | None
    cpu: str
    """Machine type of the compiled form, as `platform.machine` names it."""
    parity: Parity
    metrics: Mapping[str, Any]
    lineage: Mapping[str, Any]
    baseline: Baseline | None = field(repr=False)
    """Distributions in training; None in older manifests."""
    golden_rows: Rows = field(repr=False, compare=False)
    golden_scores: Scores = field(repr=False, compare=False)
    abi: int = ABI

    def digest(self, form: str) -> str | None:
        """Return the SHA-256 of the file in that form: ``mevt``, ``so`` or ``ubj``."""
        return {"mevt": self.mevt_sha256, "so": self.so_sha256, "ubj": self.model_id}.get(form)


def seal(manifest: Manifest, *keys: Signer) -> bytes:
    """Return the manifest file, signed by all `keys`."""
    payload = to_json(manifest)
    signatures = [key.sign(PAYLOAD_TYPE, payload) for key in keys]
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [
            {"keyid": each.key_id, "sig": base64.b64encode(each.sig).decode()}
            for each in signatures
        ],
    }
    return orjson.dumps(envelope, option=orjson.OPT_INDENT_2)


def unseal(data: bytes, trust: TrustStore, now_ns: int) -> Manifest:
    """Return the verified manifest in `data`.

    :raises UnsignedManifestError: when no trusted key signed these bytes.
    :raises BadManifestError: when it is malformed.
    """
    try:
        envelope = parse(_envelope(data))
        trust.verify(envelope, PAYLOAD_TYPE, trust.model_role, now_ns)
    except EnvelopeError as error:
        raise UnsignedManifestError(
            f"the manifest is not signed as it must be: {error.detail}", reason=error.code
        ) from None
    return from_json(envelope.payload)


def to_json(manifest: Manifest) -> bytes:
    """Return the signed payload of `manifest`."""
    return orjson.dumps(
        _content(manifest), option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY
    )


def from_json(payload: bytes) -> Manifest:
    """Return the manifest in `payload`, without a check of its signature.

    :raises BadManifestError: when it is malformed.
    """
    try:
        return _manifest(orjson.loads(payload))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadManifestError(
            f"the manifest lacks something, or has it in another form: {error}"
        ) from None


def _envelope(data: bytes) -> Envelope:
    if len(data) > MAX_BYTES:
        raise BadManifestError(f"a manifest of {len(data)} bytes")
    try:
        outer = orjson.loads(data)
        signatures = [
            Signature(key_id=each["keyid"], sig=base64.b64decode(each["sig"], validate=True))
            for each in outer["signatures"]
        ]
        payload = base64.b64decode(outer["payload"], validate=True)
        return Envelope(payload_type=outer["payloadType"], payload=payload, signatures=signatures)
    except (binascii.Error, KeyError, TypeError, ValueError) as error:
        raise BadManifestError(f"{len(data)} bytes that are no signed manifest: {error}") from None


def _content(manifest: Manifest) -> dict[str, Any]:
    content = asdict(manifest) | {"ubj_sha256": manifest.model_id}
    content["baseline"] = manifest.baseline and manifest.baseline.to_json()
    content["golden"] = {
        "rows": _numbers(content.pop("golden_rows")),
        "scores": _numbers(content.pop("golden_scores")),
    }
    return content


def _numbers(table: Rows) -> str:
    return base64.b64encode(table.astype("<f4").tobytes()).decode()


def _manifest(content: dict[str, Any]) -> Manifest:
    golden, parity = content.pop("golden"), content.pop("parity")
    if content.pop("ubj_sha256") != content["model_id"]:
        raise BadManifestError("the manifest names a model by another digest than its own")
    features = tuple(content.pop("features"))
    rows = np.frombuffer(base64.b64decode(golden["rows"], validate=True), "<f4").reshape(
        -1, len(features)
    )
    scores = np.frombuffer(base64.b64decode(golden["scores"], validate=True), "<f4")
    if len(scores) != len(rows):
        raise BadManifestError("the manifest has another number of golden rows than of scores")
    stated = content.pop("baseline", None)
    baseline = None if stated is None else Baseline.from_json(stated, features)
    return Manifest(
        **content,
        features=features,
        parity=Parity(**parity),
        baseline=baseline,
        golden_rows=rows,
        golden_scores=scores,
    )
