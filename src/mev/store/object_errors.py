"""Errors of the object store, and the names of obstore's failures with their remedies."""

import re

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

from mev.core.errors import ConflictError, MevError, UnavailableError
from mev.core.files import DiskFullError

_RETRY_S = 5
_CODE = re.compile(r"<Code>(\w+)</Code>")
_CAUSE = re.compile(r'(?:message|detail|inner): "([^"]+)"')
_NO_SPACE = re.compile(
    r"os error (?:28|122)\b|No space left|StorageFull|QuotaExceeded|507 Insufficient"
)
_CERTIFICATE = re.compile(
    r"\b(UnknownIssuer|CaUsedAsEndEntity|Expired|NotValidYet|NotValidForName)(Context)?\b"
)
_CREDENTIAL_CODES = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
_REGION_CODES = frozenset({"AuthorizationHeaderMalformed", "PermanentRedirect"})
_METADATA_SERVICE = "169.254.169.254"
"""Where obstore asks for the credentials of a cloud machine if none are set."""


class ObjectStoreUnavailableError(UnavailableError):
    """The object store does not answer."""

    code = "object_store_unavailable"


class ObjectStoreDeniedError(UnavailableError):
    """The object store refuses the credentials."""

    code = "object_store_denied"


class BucketMissingError(UnavailableError):
    """The bucket or folder of the object store does not exist."""

    code = "object_store_bucket_missing"


class DamagedObjectError(MevError):
    """An object does not have its digest."""

    code = "object_damaged"


class MissingObjectError(MevError):
    """An object is not in the store any more."""

    code = "object_missing"


class DocumentChangedError(ConflictError):
    """The document was replaced since it was read."""

    code = "document_changed"


def is_bucket_missing(error: Exception) -> bool:
    """Return whether the bucket is missing, rather than an object."""
    return "NoSuchBucket" in _CODE.findall(str(error))


def named(error: Exception, place: str) -> MevError | None:
    """Return the named error for a failure of the store at `place`.

    None means that an object does not exist.
    """
    text = str(error)
    if is_bucket_missing(error):
        return BucketMissingError(
            f"the bucket of {place} (OBJECT_STORE) does not exist; create it, or correct"
            " OBJECT_STORE and AWS_ENDPOINT_URL"
        )
    if isinstance(error, FileNotFoundError):
        return None
    if _NO_SPACE.search(text):
        return DiskFullError(
            f"{place} (OBJECT_STORE) is full; free space there, then try again", path=place
        )
    code = next(iter(_CODE.findall(text)), "")
    return _denied(error, place, code) or _away(text, place, code)


def _denied(error: Exception, place: str, code: str) -> MevError | None:
    text = str(error)
    if code == "RequestTimeTooSkewed":
        return ObjectStoreDeniedError(
            f"{place} refuses requests because this machine's clock is wrong ({code}); synchronise"
            " the clock"
        )
    if code in _REGION_CODES:
        return ObjectStoreDeniedError(
            f"the bucket of {place} is in another region ({code}); correct AWS_REGION"
        )
    kinds = (PermissionDeniedError, UnauthenticatedError, PermissionError)
    if isinstance(error, kinds) or code in _CREDENTIAL_CODES:
        return ObjectStoreDeniedError(
            f"{place} refuses access ({code or _first_line(text)}); check AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY, and that they may list the bucket and read and write its"
            " objects"
        )
    if _METADATA_SERVICE in text:
        return ObjectStoreDeniedError(
            f"there are no credentials for {place}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return None


def _away(text: str, place: str, code: str) -> MevError:
    if (certificate := _CERTIFICATE.search(text)) is not None:
        return ObjectStoreUnavailableError(
            f"the certificate of {place} is refused ({certificate[1]}); name its authority in"
            " OBJECT_STORE_TLS_CA_FILE, or renew the certificate",
            retry_after_s=_RETRY_S,
        )
    cause = code or next(reversed(_CAUSE.findall(text)), "") or _first_line(text)
    return ObjectStoreUnavailableError(
        f"{place} (OBJECT_STORE) does not answer: {cause}; check AWS_ENDPOINT_URL and that the"
        " server runs",
        retry_after_s=_RETRY_S,
    )


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:300]
