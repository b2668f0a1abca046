"""Redis storage of accounts: users, sessions, API keys and failed logins.

It contains no usable credential: passwords are Argon2id hashes, keys are digests, and a session is
only a counter. All keys share one hash tag, so that scripts run on a cluster.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from mev.auth.model import ApiKey, Backoff, Permission, Role, SessionRecord, User
from mev.core.paging import page_of
from mev.store.redis import Redis, Script, as_text

_PREFIX = "mev:{auth}:"
_USERS, _KEYS = f"{_PREFIX}users", f"{_PREFIX}keys"
_KEPT_AFTER_END_S = 30 * 86_400
MAX_KEYS_PER_OWNER = 200
T = TypeVar("T")

# Creates a hash unless it exists; the index is ordered by time of creation.
_CREATE_USER = Script("""
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[2])
return 1
""")
_CHANGE = Script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
""")
_NEW_EPOCH = Script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if #ARGV > 0 then redis.call('HSET', KEYS[1], unpack(ARGV)) end
return redis.call('HINCRBY', KEYS[1], 'epoch', 1)
""")
_CREATE_KEY = Script("""
if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[4]) then
  for _, id in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
    if redis.call('EXISTS', ARGV[5] .. id) == 0 then
      redis.call('ZREM', KEYS[3], id)
      redis.call('ZREM', KEYS[2], id)
    end
  end
  if redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[4]) then return 0 end
end
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
redis.call('EXPIREAT', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[1], ARGV[2])
return 1
""")
_USE_KEY = Script("""
local key = redis.call('HGETALL', KEYS[1])
if #key == 0 then return {key, key} end
local owner = redis.call('HGET', KEYS[1], 'owner')
redis.call('HSET', KEYS[1], 'used_s', ARGV[1])
if owner == '' then return {key, {}} end
return {key, redis.call('HGETALL', ARGV[2] .. owner)}
""")
_REVOKE_KEY = Script("""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSETNX', KEYS[1], 'revoked_s', ARGV[1])
redis.call('EXPIREAT', KEYS[1], ARGV[2])
return 1
""")
_OPEN_SESSION = Script("""
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('EXPIREAT', KEYS[1], ARGV[1])
""")
_READ_SESSION = Script("""
local session = redis.call('HGETALL', KEYS[1])
if #session == 0 then return {session, session} end
return {session, redis.call('HGETALL', ARGV[1] .. redis.call('HGET', KEYS[1], 'user'))}
""")
# A token of an older generation was used before, maybe by a thief: the session ends.
_ROTATE = Script("""
local generation = redis.call('HGET', KEYS[1], 'generation')
if not generation then return 0 end
if generation ~= ARGV[1] then
  redis.call('DEL', KEYS[1])
  return -1
end
return redis.call('HINCRBY', KEYS[1], 'generation', 1)
""")
# Counts an attempt before verification, so that parallel attempts count; returns lock milliseconds.
_ATTEMPT = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local locked = tonumber(redis.call('HGET', KEYS[1], 'until') or 0)
if locked > now then return locked - now end
local n = redis.call('HINCRBY', KEYS[1], 'n', 1)
local free, base, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if n >= free then
  local wait = math.min(most, base * 2 ^ math.min(n - free, 30))
  redis.call('HSET', KEYS[1], 'until', now + wait)
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 0
""")


class AccountStore:
    """Typed access to stored accounts; methods raise RedisUnavailableError."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create_user(self, user: User) -> bool:
        """Store a new user; False if the name exists."""
        fields = _flat(
            role=user.role.value,
            password=user.password,
            created_s=user.created_s,
            disabled=int(user.disabled),
            epoch=user.epoch,
        )
        return bool(
            await self._redis.run(
                _CREATE_USER, [_user(user.name), _USERS], user.created_s, user.name, *fields
            )
        )

    async def user(self, name: str) -> User | None:
        """Return a user."""
        return _read_user(name, await self._redis.read_hash(_user(name)))

    async def users(self, after: float, limit: int) -> tuple[list[User], float | None]:
        """Return users in order of creation, and the next position."""
        return await self._page(_USERS, after, limit, self.user)

    async def any_user(self) -> bool:
        """Return whether a user exists."""
        return bool(await self._redis.ranked(_USERS, -1.0, 1))

    async def set_role(self, name: str, role: Role) -> bool:
        """Change a user's role; False if the user does not exist."""
        return bool(await self._redis.run(_CHANGE, [_user(name)], "role", role.value))

    async def set_disabled(self, name: str, *, disabled: bool) -> bool:
        """Disable or enable a user and end the sessions; False if the user does not exist."""
        return bool(await self._redis.run(_NEW_EPOCH, [_user(name)], "disabled", int(disabled)))

    async def set_password(self, name: str, password: str) -> bool:
        """Change a password hash and end the sessions; False if the user does not exist."""
        return bool(await self._redis.run(_NEW_EPOCH, [_user(name)], "password", password))

    async def rehash_password(self, name: str, password: str) -> None:
        """Replace the hash of an unchanged password."""
        await self._redis.run(_CHANGE, [_user(name)], "password", password)

    async def end_sessions(self, name: str) -> None:
        """End all sessions of a user."""
        await self._redis.run(_NEW_EPOCH, [_user(name)])

    async def open_session(self, session: SessionRecord) -> None:
        """Store a new session until it expires."""
        fields = _flat(
            user=session.user,
            epoch=session.epoch,
            generation=session.generation,
            authenticated_s=session.authenticated_s,
            expires_s=session.expires_s,
        )
        await self._redis.run(
            _OPEN_SESSION, [_session(session.id)], int(session.expires_s), *fields
        )

    async def session(self, session_id: str) -> tuple[SessionRecord, User] | None:
        """Return an open session with its user, or None if it has ended or the user is disabled."""
        kept, owner = await self._redis.run(_READ_SESSION, [_session(session_id)], _user(""))
        fields = as_text(kept)
        user = _read_user(fields.get("user", ""), as_text(owner))
        if user is None or user.disabled or user.epoch != int(fields["epoch"]):
            return None
        session = SessionRecord(
            id=session_id,
            user=user.name,
            epoch=user.epoch,
            generation=int(fields["generation"]),
            authenticated_s=float(fields["authenticated_s"]),
            expires_s=float(fields["expires_s"]),
        )
        return session, user

    async def rotate(self, session_id: str, generation: int) -> int:
        """Return the next generation of the session.

        0: the session has ended; -1: `generation` was used before, and the session ends now.
        """
        return int(await self._redis.run(_ROTATE, [_session(session_id)], generation))

    async def end_session(self, session_id: str) -> None:
        """End one session."""
        await self._redis.delete(_session(session_id))

    async def create_key(self, key: ApiKey) -> bool:
        """Store a new API key; False if its owner has too many."""
        fields = _flat(
            name=key.name,
            owner=key.owner,
            digest=key.digest,
            scopes=" ".join(sorted(key.scopes)),
            created_s=key.created_s,
            expires_s=key.expires_s,
        )
        keys = [_key(key.id), _KEYS, f"{_KEYS}-of:{key.owner}"]
        kept_until = int(key.expires_s + _KEPT_AFTER_END_S)
        made = await self._redis.run(
            _CREATE_KEY,
            keys,
            key.created_s,
            key.id,
            kept_until,
            MAX_KEYS_PER_OWNER,
            _key(""),
            *fields,
        )
        return bool(made)

    async def key(self, key_id: str) -> ApiKey | None:
        """Return a key in any state."""
        return _read_key(key_id, await self._redis.read_hash(_key(key_id)))

    async def use_key(self, key_id: str, now_s: float) -> tuple[ApiKey, User | None] | None:
        """Record the use of a key; return it with its owner, None for a key of the master key."""
        kept, owner = await self._redis.run(_USE_KEY, [_key(key_id)], now_s, _user(""))
        key = _read_key(key_id, as_text(kept))
        return None if key is None else (key, _read_user(key.owner, as_text(owner)))

    async def keys(
        self, owner: str | None, after: float, limit: int
    ) -> tuple[list[ApiKey], float | None]:
        """Return a page of the keys of `owner` (None: of all users), and the next position."""
        return await self._page(
            _KEYS if owner is None else f"{_KEYS}-of:{owner}", after, limit, self.key
        )

    async def revoke_key(self, key_id: str, now_s: float) -> bool:
        """Revoke a key permanently; False if it does not exist."""
        return bool(
            await self._redis.run(
                _REVOKE_KEY, [_key(key_id)], now_s, int(now_s + _KEPT_AFTER_END_S)
            )
        )

    async def attempt(self, name: str, backoff: Backoff) -> float:
        """Count a login attempt; return the seconds for which the name is locked, or 0."""
        times = (
            round(backoff.base_s * 1000),
            round(backoff.most_s * 1000),
            round(backoff.forget_s * 1000),
        )
        return int(await self._redis.run(_ATTEMPT, [_failures(name)], backoff.free, *times)) / 1000

    async def forgive(self, name: str) -> None:
        """Clear the failed logins of a name."""
        await self._redis.delete(_failures(name))

    async def _page(
        self, index: str, after: float, limit: int, read: Callable[[str], Awaitable[T | None]]
    ) -> tuple[list[T], float | None]:
        members, following = page_of(
            await self._redis.ranked(index, after, limit + 1), limit, lambda member: member[1]
        )
        found = [await read(member) for member, _ in members]
        return [item for item in found if item is not None], following


def _user(name: str) -> str:
    return f"{_PREFIX}user:{name}"


def _session(session_id: str) -> str:
    return f"{_PREFIX}session:{session_id}"


def _key(key_id: str) -> str:
    return f"{_PREFIX}key:{key_id}"


def _failures(name: str) -> str:
    return f"{_PREFIX}failures:{name}"


def _flat(**fields: str | float) -> list[str | float]:
    return [part for pair in fields.items() for part in pair]


def _read_user(name: str, fields: dict[str, str]) -> User | None:
    if not fields:
        return None
    return User(
        name=name,
        role=Role(fields["role"]),
        password=fields["password"],
        created_s=float(fields["created_s"]),
        disabled=fields["disabled"] == "1",
        epoch=int(fields["epoch"]),
    )


def _read_key(key_id: str, fields: dict[str, str]) -> ApiKey | None:
    if not fields:
        return None
    return ApiKey(
        id=key_id,
        name=fields["name"],
        owner=fields["owner"],
        digest=fields["digest"],
        scopes=frozenset(Permission(scope) for scope in fields["scopes"].split()),
        created_s=float(fields["created_s"]),
        expires_s=float(fields["expires_s"]),
        used_s=float(fields["used_s"]) if "used_s" in fields else None,
        revoked_s=float(fields["revoked_s"]) if "revoked_s" in fields else None,
    )
