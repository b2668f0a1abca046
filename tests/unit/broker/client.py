"""A client of the broker that can send what no library would."""

import asyncio
import base64
import hashlib
import hmac
import struct

import google_crc32c

TOPIC = "reports"
PARTITIONS = 8
HEADER = struct.Struct(">qiibIhiqqqhii")
PRODUCE, FETCH, METADATA, OFFSET_COMMIT, JOIN_GROUP = 0, 1, 3, 8, 11
INIT_PRODUCER_ID = 22
SASL_HANDSHAKE, API_VERSIONS, SASL_AUTHENTICATE = 17, 18, 36
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def record(number: int = 0, value: bytes = b"x") -> bytes:
    """Return record `number` of a batch, without a key."""
    content = b"\0\0" + varint(number) + varint(-1) + varint(len(value)) + value + b"\0"
    return varint(len(content)) + content


def varint(number: int) -> bytes:
    """Return `number` in the zigzag encoding."""
    left, found = (number << 1) ^ (number >> 63), bytearray()
    while left > 0x7F:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes((*found, left))


def batch(
    records: int = 1,
    *,
    payload: bytes = b"x",
    producer_id: int = -1,
    sequence: int = 0,
    content: bytes | None = None,
    attributes: int = 0,
    wrong_checksum: int = 0,
) -> memoryview:
    """Return a batch of `records` records with `payload`, or with any `content` in their place."""
    if content is None:
        content = b"".join(record(number, payload) for number in range(records))
    fields = (attributes, records - 1, 1, 1, producer_id, 0, sequence, records)
    checked = struct.pack(">hiqqqhii", *fields) + content
    crc = google_crc32c.value(checked) ^ wrong_checksum
    size = HEADER.size + len(content) - 12
    return memoryview(struct.pack(">qiibI", 0, size, -1, 2, crc) + checked)


def text(value: str) -> bytes:
    """Return a STRING of the protocol."""
    return struct.pack(">h", len(value)) + value.encode()


async def producer_id(streams: Streams) -> int:
    """Return a new producer id."""
    answer = await asked(streams, INIT_PRODUCER_ID, 0, struct.pack(">hi", -1, 1000))
    return int(struct.unpack_from(">q", answer, 6)[0])


async def produced(streams: Streams, topic: str, data: memoryview, partition: int = 0) -> int:
    """Send a batch; return the error code."""
    head = struct.pack(">hhii", -1, 1, 1000, 1) + text(topic)
    body = head + struct.pack(">iii", 1, partition, len(data)) + bytes(data)
    answer = await asked(streams, PRODUCE, 3, body)
    return int(struct.unpack_from(">h", answer, 4 + 2 + len(topic) + 4 + 4)[0])


def request(key: int, version: int, body: bytes) -> bytes:
    """Return a request with its length."""
    content = struct.pack(">hhih", key, version, 1, -1) + body
    return struct.pack(">i", len(content)) + content


async def asked(streams: Streams, key: int, version: int, body: bytes) -> bytes:
    """Send a request; return the answer behind its number."""
    reader, writer = streams
    writer.write(request(key, version, body))
    size = int.from_bytes(await reader.readexactly(4))
    return (await reader.readexactly(size))[4:]


async def said(streams: Streams, message: bytes) -> bytes:
    """Send a message of SCRAM; return the answer to it."""
    answer = await asked(streams, SASL_AUTHENTICATE, 0, struct.pack(">i", len(message)) + message)
    assert answer[:2] == b"\0\0", answer
    return answer[8:]


async def joined(port: int, user: str, password: str = "") -> Streams:
    """Connect as a user, whose password is its name unless another is given."""
    streams = await asyncio.open_connection("127.0.0.1", port)
    await asked(streams, SASL_HANDSHAKE, 1, struct.pack(">h", 13) + b"SCRAM-SHA-256")
    bare = f"n={user},r=nonce".encode()
    challenge = await said(streams, b"n,," + bare)
    fields = dict(part.split("=", 1) for part in challenge.decode().split(","))
    salted = hashlib.pbkdf2_hmac(
        "sha256", (password or user).encode(), base64.b64decode(fields["s"]), int(fields["i"])
    )
    key = hmac.digest(salted, b"Client Key", "sha256")
    without_proof = f"c=biws,r={fields['r']}".encode()
    signature = hmac.digest(
        hashlib.sha256(key).digest(), b",".join((bare, challenge, without_proof)), "sha256"
    )
    proof = base64.b64encode(bytes(one ^ other for one, other in zip(key, signature, strict=True)))
    await said(streams, without_proof + b",p=" + proof)
    return streams
