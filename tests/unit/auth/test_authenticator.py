"""From credentials to principals, over a real Valkey."""

import time

import pytest

from mev.auth.authenticator import Authenticator
from mev.auth.credentials import Credential, CredentialSource
from mev.auth.errors import (
    AccountsUnavailableError,
    InvalidScopeError,
    SessionEndedError,
    UnauthorizedError,
    UnknownApiKeyError,
)
from mev.auth.keys import ApiKeys
from mev.auth.model import (
    MASTER,
    NEVER_IN_KEYS,
    ROLES,
    CredentialKind,
    Permission,
    Principal,
    Role,
    User,
)
from mev.auth.service import Accounts
from mev.auth.store import AccountStore
from mev.auth.tokens import Keyring
from mev.store.redis import Redis
from tests.services.waits import until_async
from tests.unit.auth.hashing import SECRET

PASSWORD = "correct horse battery"
READ = {Permission.EVENTS_READ, Permission.STREAM_READ}
ALICE = Principal(
    id="user:alice",
    name="alice",
    kind=CredentialKind.USER,
    permissions=ROLES[Role.OPERATOR],
    user="alice",
)


def credential(text: str, source: CredentialSource = CredentialSource.HEADER) -> Credential:
    return Credential(text.encode(errors="surrogateescape"), source)


@pytest.fixture
def authenticator(store: AccountStore) -> Authenticator:
    return Authenticator(store, Keyring([SECRET]), "the-master-key", cache_s=60)


@pytest.fixture
def keys(store: AccountStore) -> ApiKeys:
    return ApiKeys(store)


@pytest.fixture
async def alice(accounts: Accounts) -> User:
    return await accounts.add_user(MASTER, "alice", PASSWORD, Role.OPERATOR)


@pytest.fixture
def away(authenticator: Authenticator, gone: Redis) -> None:
    """Take Redis away from the authenticator."""
    authenticator._store._redis = gone


async def test_the_master_key_needs_no_redis(authenticator: Authenticator, away: None) -> None:
    master = credential("the-master-key")
    assert authenticator.known(master) is None
    assert await authenticator.check(master) is MASTER
    assert authenticator.known(master) is MASTER


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the-master-ke",
        "the-master-key ",
        "mev_",
        "mev_a_b",
        "mev_zz/zz_b",
        "mevr_a_1_x",
        "a.b.c",
        "\udcff",
        "x" * 5000,
    ],
)
async def test_what_is_nobodys_is_refused_and_not_remembered(
    authenticator: Authenticator, text: str
) -> None:
    with pytest.raises(UnauthorizedError):
        await authenticator.check(credential(text))
    assert not authenticator.remembers(credential(text))
    assert authenticator.known(credential(text)) is None


async def test_a_key_does_what_its_scopes_say(
    authenticator: Authenticator, keys: ApiKeys, alice: User
) -> None:
    key, text = await keys.create(ALICE, "reader", READ, 60)
    who = await authenticator.check(credential(text))
    assert (who.id, who.name, who.kind, who.user) == (
        f"key:{key.id}",
        "alice/reader",
        CredentialKind.KEY,
        "alice",
    )
    assert who.permissions == READ | {Permission.SELF_READ}
    assert (await keys.page("alice", -1, 10))[0][0].used_s is not None


async def test_nothing_kept_is_the_key(keys: ApiKeys, alice: User, redis: Redis) -> None:
    _, text = await keys.create(ALICE, "reader", READ, 60)
    secret = text.split("_", 2)[2]  # it may contain an underscore itself
    for key, _ in await redis.ranked("mev:{auth}:keys", -1, 10):
        kept = await redis.read_hash(f"mev:{{auth}}:key:{key}")
        assert kept
        assert secret not in str(kept)


async def test_the_id_of_a_key_is_not_the_key(
    authenticator: Authenticator, keys: ApiKeys, alice: User
) -> None:
    key, text = await keys.create(ALICE, "reader", READ, 60)
    for guess in (
        f"mev_{key.id}_",
        f"mev_{key.id}_x",
        text[:-1],
        f"{text}x",
        text.replace(key.id, key.id.upper()),
    ):
        if guess != text:
            with pytest.raises(UnauthorizedError):
                await authenticator.check(credential(guess))


async def test_a_key_can_do_no_more_than_its_owner_now(
    authenticator: Authenticator, keys: ApiKeys, accounts: Accounts, alice: User
) -> None:
    _, text = await keys.create(ALICE, "bot", {Permission.EVENTS_WRITE, Permission.EVENTS_READ}, 60)
    await accounts.set_role(MASTER, "alice", Role.VIEWER)
    assert Permission.EVENTS_WRITE not in (await authenticator.check(credential(text))).permissions
    await accounts.set_disabled(MASTER, "alice", disabled=True)
    with pytest.raises(UnauthorizedError, match="disabled"):
        await authenticator.check(credential(text))


async def test_nobody_gives_a_key_what_they_have_not(keys: ApiKeys, alice: User) -> None:
    with pytest.raises(InvalidScopeError):
        await keys.create(ALICE, "x", {Permission.MODELS_TRAIN}, 60)
    for scope in NEVER_IN_KEYS:
        with pytest.raises(InvalidScopeError):
            await keys.create(MASTER, "x", {scope}, 60)


async def test_keys_end_by_themselves(
    authenticator: Authenticator, keys: ApiKeys, alice: User
) -> None:
    _, text = await keys.create(ALICE, "x", READ, -1)
    with pytest.raises(UnauthorizedError, match="expired"):
        await authenticator.check(credential(text))


async def test_a_cached_answer_ends_with_its_key(
    authenticator: Authenticator, keys: ApiKeys, alice: User
) -> None:
    _, text = await keys.create(ALICE, "x", READ, 1)
    await authenticator.check(credential(text))
    await until_async(lambda: authenticator.known(credential(text)) is None)


async def test_a_revoked_key_is_refused_once_the_cached_answer_is_old(
    store: AccountStore, keys: ApiKeys, alice: User
) -> None:
    one, other = (
        Authenticator(store, Keyring([SECRET]), "m", cache_s=cache_s) for cache_s in (60, 0.05)
    )
    key, text = await keys.create(ALICE, "x", READ, 60)
    for authenticator in (one, other):
        await authenticator.check(credential(text))
    await keys.revoke(ALICE, key.id)
    one.forget()
    assert one.known(credential(text)) is None
    time.sleep(0.05)  # noqa: ASYNC251 - its memory; a longer pause changes nothing
    assert other.known(credential(text)) is None
    for authenticator in (one, other):
        with pytest.raises(UnauthorizedError, match="revoked"):
            await authenticator.check(credential(text))
        assert not authenticator.remembers(credential(text))


async def test_people_revoke_their_own_keys_and_administrators_all(
    keys: ApiKeys, alice: User
) -> None:
    first, _ = await keys.create(ALICE, "x", READ, 60)
    second, _ = await keys.create(MASTER, "y", READ, 60)
    await keys.revoke(MASTER, first.id)
    for key_id in (second.id, "none"):
        with pytest.raises(UnknownApiKeyError):
            await keys.revoke(ALICE, key_id)


async def test_an_access_token_is_as_good_as_its_session(
    authenticator: Authenticator, accounts: Accounts, alice: User
) -> None:
    login = await accounts.login("alice", PASSWORD)
    token = credential(login.access_token)
    who = await authenticator.check(token)
    assert (who.id, who.permissions, who.credential) == (
        "user:alice",
        ROLES[Role.OPERATOR],
        login.session.id,
    )
    await accounts.set_role(MASTER, "alice", Role.VIEWER)
    assert (await authenticator.check(token)).permissions == ROLES[Role.VIEWER]
    await accounts.logout(who)
    with pytest.raises(SessionEndedError):
        await authenticator.check(token)


async def test_a_cookie_is_a_cookie_only(
    authenticator: Authenticator, accounts: Accounts, alice: User
) -> None:
    cookie = (await accounts.login("alice", PASSWORD, browser=True)).cookie
    assert (
        await authenticator.check(credential(cookie, CredentialSource.COOKIE))
    ).kind is CredentialKind.BROWSER
    with pytest.raises(UnauthorizedError):
        await authenticator.check(credential(cookie))
    for other in ("the-master-key", (await accounts.login("alice", PASSWORD)).access_token):
        with pytest.raises(SessionEndedError):
            await authenticator.check(credential(other, CredentialSource.COOKIE))


async def test_without_redis_what_was_good_stays_good_and_the_rest_waits(
    authenticator: Authenticator, keys: ApiKeys, accounts: Accounts, alice: User, gone: Redis
) -> None:
    _, used = await keys.create(ALICE, "used", READ, 60)
    _, unused = await keys.create(ALICE, "unused", READ, 60)
    login, cookie = (
        await accounts.login("alice", PASSWORD),
        await accounts.login("alice", PASSWORD, browser=True),
    )
    await authenticator.check(credential(used))
    authenticator.forget()
    authenticator._store._redis = gone
    assert (await authenticator.check(credential(used))).name == "alice/used"
    assert (await authenticator.check(credential(login.access_token))).permissions == ROLES[
        Role.OPERATOR
    ]
    for text, source in (
        (unused, CredentialSource.HEADER),
        (cookie.cookie, CredentialSource.COOKIE),
    ):
        with pytest.raises(AccountsUnavailableError):
            await authenticator.check(credential(text, source))


async def test_without_redis_nothing_stays_good_for_ever(
    store: AccountStore, keys: ApiKeys, alice: User, gone: Redis
) -> None:
    authenticator = Authenticator(store, Keyring([SECRET]), "m", cache_s=0, stale_s=0)
    _, text = await keys.create(ALICE, "x", READ, 60)
    await authenticator.check(credential(text))
    store._redis = gone
    with pytest.raises(AccountsUnavailableError):
        await authenticator.check(credential(text))


async def test_an_open_connection_is_looked_at_again(
    authenticator: Authenticator, keys: ApiKeys, accounts: Accounts, alice: User
) -> None:
    key, text = await keys.create(ALICE, "x", READ, 60)
    login = await accounts.login("alice", PASSWORD)
    by_key, by_token = (
        await authenticator.check(credential(text)),
        await authenticator.check(credential(login.access_token)),
    )
    assert await authenticator.renew(MASTER) is MASTER
    assert await authenticator.renew(by_key) == by_key
    assert await authenticator.renew(by_token) == by_token
    await keys.revoke(ALICE, key.id)
    await accounts.logout(by_token)
    assert await authenticator.renew(by_key) is None
    assert await authenticator.renew(by_token) is None


async def test_without_redis_open_connections_stay(
    authenticator: Authenticator, away: None
) -> None:
    for kind in (CredentialKind.KEY, CredentialKind.USER):
        who = Principal(id="x", name="x", kind=kind, permissions=frozenset(), credential="c")
        assert await authenticator.renew(who) is who


async def test_memory_is_bounded(store: AccountStore, keys: ApiKeys, alice: User) -> None:
    authenticator = Authenticator(store, Keyring([SECRET]), "m", cache_s=60, entries=3)
    texts = [(await keys.create(ALICE, f"k{number}", READ, 60))[1] for number in range(5)]
    for text in texts:
        await authenticator.check(credential(text))
    assert [authenticator.remembers(credential(text)) for text in texts] == [
        False,
        False,
        True,
        True,
        True,
    ]
