"""Users and sessions, over a real Valkey."""

import asyncio

import pytest

from mev.auth import tokens
from mev.auth.errors import (
    AccountsUnavailableError,
    InvalidNameError,
    InvalidPasswordError,
    LoginBusyError,
    LoginLockedError,
    SessionEndedError,
    UnknownUserError,
    UserExistsError,
    WrongPasswordError,
)
from mev.auth.model import (
    MASTER,
    ROLES,
    Backoff,
    CredentialKind,
    Principal,
    Role,
    SessionRecord,
    User,
)
from mev.auth.passwords import Passwords
from mev.auth.service import Accounts, Login
from mev.auth.store import AccountStore
from mev.auth.tokens import Keyring
from mev.core.errors import MevError
from mev.store.redis import Redis, Script
from tests.unit.auth.hashing import SECRET, CountingHasher

PASSWORD = "correct horse battery"
_UNLOCK = Script("return redis.call('HSET', KEYS[1], 'until', 0)")
Facts = list[tuple[str, str, str, str]]


@pytest.fixture
async def alice(accounts: Accounts) -> User:
    return await accounts.add_user(MASTER, "alice", PASSWORD, Role.OPERATOR)


def principal(login: Login) -> Principal:
    role = login.user.role
    return Principal(
        id="user:alice",
        name="alice",
        kind=CredentialKind.USER,
        permissions=ROLES[role],
        user="alice",
        credential=login.session.id,
    )


async def refusal(work: object) -> tuple[type, str, str]:
    with pytest.raises(MevError) as caught:
        await work  # type: ignore[misc]
    return type(caught.value), caught.value.code, caught.value.detail


async def test_the_first_administrator_is_made_once(accounts: Accounts) -> None:
    made = await asyncio.gather(*(accounts.create_first_admin() for _ in range(5)))
    (password,) = [made_one for made_one in made if made_one]
    assert (await accounts.login("admin", password)).user.role is Role.ADMIN
    assert await accounts.create_first_admin() is None


async def test_names_are_one_whatever_their_case(accounts: Accounts, alice: User) -> None:
    assert (await accounts.login(" ALICE ", PASSWORD)).user.name == alice.name
    with pytest.raises(UserExistsError):
        await accounts.add_user(MASTER, "Alice", PASSWORD, Role.VIEWER)


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "a:b", "é", "a" * 65, "a\n"])
async def test_a_name_fits_into_addresses_and_logs(accounts: Accounts, name: str) -> None:
    if name.strip() == "a":
        assert (await accounts.add_user(MASTER, name, PASSWORD, Role.VIEWER)).name == "a"
    else:
        with pytest.raises(InvalidNameError):
            await accounts.add_user(MASTER, name, PASSWORD, Role.VIEWER)


@pytest.mark.parametrize("password", ["short", "x" * 300, "aaaaaaaaaaaaaaaa", "robert-12345678"])
async def test_poor_passwords_are_refused(accounts: Accounts, password: str) -> None:
    with pytest.raises(InvalidPasswordError):
        await accounts.add_user(MASTER, "robert-12345", password, Role.VIEWER)


async def test_the_same_letters_are_the_same_password(accounts: Accounts) -> None:
    await accounts.add_user(MASTER, "zoe", "passwörd of Zoë", Role.VIEWER)
    await accounts.login("zoe", "passwo\u0308rd of Zoe\u0308")
    await accounts.login("zoe", "\uff50assw\u00f6rd of Zo\u00eb")


async def test_an_unknown_user_is_told_and_costs_what_a_wrong_password_does(
    accounts: Accounts, alice: User, hasher: CountingHasher
) -> None:
    await accounts.set_disabled(
        MASTER, (await accounts.add_user(MASTER, "bob", PASSWORD, Role.VIEWER)).name, disabled=True
    )
    answers, work = set(), []
    for name, password in (
        ("alice", "wrong"),
        ("nobody", "wrong"),
        ("bob", PASSWORD),
        ("alice", ""),
    ):
        before = hasher.verified
        answers.add(await refusal(accounts.login(name, password)))
        work.append(hasher.verified - before)
    assert len(answers) == 1
    assert work == [1, 1, 1, 1]


async def test_wrong_passwords_lock_a_name_for_longer_and_longer(
    accounts: Accounts, alice: User, hasher: CountingHasher
) -> None:
    waits = []
    for name in ("alice", "nobody"):
        for _ in range(3):
            with pytest.raises(WrongPasswordError):
                await accounts.login(name, "wrong")
        verified = hasher.verified
        with pytest.raises(LoginLockedError) as caught:
            await accounts.login(name, PASSWORD)
        assert hasher.verified == verified
        waits.append(caught.value.retry_after_s)
    assert waits[0] is not None
    assert waits[0] in {60, 61}
    assert waits[1] in {60, 61}


async def test_each_lock_is_twice_the_one_before_up_to_the_longest(
    store: AccountStore, redis: Redis
) -> None:
    backoff = Backoff(free=2, base_s=100, most_s=350)
    assert [await store.attempt("alice", backoff) for _ in range(2)] == [0, 0]
    locks = []
    for _ in range(4):
        locks.append(round(await store.attempt("alice", backoff), -1))
        await redis.run(_UNLOCK, ["mev:{auth}:failures:alice"])  # as if that time had passed
        assert await store.attempt("alice", backoff) == 0
    assert locks == [100, 200, 350, 350]


async def test_guesses_at_once_are_counted_one_by_one(
    accounts: Accounts, alice: User, hasher: CountingHasher
) -> None:
    before = hasher.verified
    guesses = [accounts.login("alice", f"guess {number}") for number in range(20)]
    outcomes = await asyncio.gather(*guesses, return_exceptions=True)
    assert hasher.verified - before == 3
    assert sum(isinstance(outcome, LoginLockedError) for outcome in outcomes) == 17


async def test_a_right_password_forgives(accounts: Accounts, alice: User) -> None:
    for _ in range(3):
        for _ in range(2):
            with pytest.raises(WrongPasswordError):
                await accounts.login("alice", "wrong")
        await accounts.login("alice", PASSWORD)


async def test_too_many_logins_at_once_are_told_to_wait(passwords: Passwords) -> None:
    outcomes = await asyncio.gather(
        *(passwords.hash(PASSWORD) for _ in range(40)), return_exceptions=True
    )
    assert sum(isinstance(outcome, LoginBusyError) for outcome in outcomes) == 8


async def test_a_stolen_refresh_token_ends_the_session_for_thief_and_owner(
    accounts: Accounts, alice: User, facts: Facts
) -> None:
    first = await accounts.login("alice", PASSWORD)
    other = await accounts.login("alice", PASSWORD)
    second = await accounts.refresh(first.refresh_token)
    third = await accounts.refresh(second.refresh_token)
    with pytest.raises(SessionEndedError, match="used before"):
        await accounts.refresh(second.refresh_token)
    with pytest.raises(SessionEndedError):
        await accounts.refresh(third.refresh_token)
    assert ("user:alice", "session.reuse", first.session.id, "refused") in facts
    await accounts.refresh(other.refresh_token)


async def test_of_two_that_exchange_a_token_at_once_one_gets_another(
    accounts: Accounts, alice: User
) -> None:
    login = await accounts.login("alice", PASSWORD)
    outcomes = await asyncio.gather(
        *(accounts.refresh(login.refresh_token) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(outcome, Login) for outcome in outcomes) == 1


async def test_a_guessed_refresh_token_ends_nothing(accounts: Accounts, alice: User) -> None:
    login = await accounts.login("alice", PASSWORD)
    thief = Keyring(["another-secret-of-the-tests-40-characters"])
    with pytest.raises(SessionEndedError):
        await accounts.refresh(thief.session_token(tokens.REFRESH_PREFIX, login.session.id, 1))
    await accounts.refresh(login.refresh_token)


@pytest.mark.parametrize("what", ["logout", "everywhere", "disable", "password", "own password"])
async def test_a_session_ends_with_what_it_came_from(
    accounts: Accounts, alice: User, what: str
) -> None:
    login, other = await accounts.login("alice", PASSWORD), await accounts.login("alice", PASSWORD)
    match what:
        case "logout":
            await accounts.logout(principal(login))
        case "everywhere":
            await accounts.logout(principal(other), everywhere=True)
        case "disable":
            await accounts.set_disabled(MASTER, "alice", disabled=True)
        case "password":
            await accounts.set_password(MASTER, "alice", "another long password")
        case "own password":
            await accounts.change_password(principal(login), PASSWORD, "another long password")
    with pytest.raises(SessionEndedError):
        await accounts.refresh(login.refresh_token)
    if what == "logout":
        await accounts.refresh(other.refresh_token)


async def test_ones_own_password_wants_the_present_one(accounts: Accounts, alice: User) -> None:
    login = await accounts.login("alice", PASSWORD)
    with pytest.raises(WrongPasswordError):
        await accounts.change_password(principal(login), "wrong", "another long password")
    with pytest.raises(UnknownUserError):
        await accounts.change_password(MASTER, "wrong", "another long password")


async def test_a_session_ends_by_itself(
    accounts: Accounts, store: AccountStore, alice: User, now: float
) -> None:
    session = SessionRecord(
        id="old", user="alice", epoch=0, generation=1, authenticated_s=now - 100, expires_s=now - 1
    )
    await store.open_session(session)
    with pytest.raises(SessionEndedError):
        await accounts.refresh(Keyring([SECRET]).session_token(tokens.REFRESH_PREFIX, "old", 1))


async def test_a_hash_of_other_parameters_is_replaced(
    accounts: Accounts, store: AccountStore, alice: User, keyring: Keyring
) -> None:
    passwords = Passwords(CountingHasher(time_cost=2))
    for _ in range(2):
        await Accounts(store, keyring, passwords).login("alice", PASSWORD)
    passwords.close()
    after = await store.user("alice")
    assert after is not None
    assert "t=1," in alice.password
    assert "t=2," in after.password


async def test_every_change_is_told(accounts: Accounts, alice: User, facts: Facts) -> None:
    await accounts.set_role(MASTER, "alice", Role.ADMIN)
    await accounts.set_disabled(MASTER, "alice", disabled=True)
    await accounts.set_disabled(MASTER, "alice", disabled=False)
    await accounts.set_password(MASTER, "alice", "another long password")
    await refusal(accounts.login("alice", PASSWORD))
    assert [(actor, action, outcome) for actor, action, _, outcome in facts] == [
        ("master", "user.add", "ok"),
        ("master", "user.role", "ok"),
        ("master", "user.disable", "ok"),
        ("master", "user.enable", "ok"),
        ("master", "user.password", "ok"),
        ("user:alice", "login", "refused"),
    ]


async def test_unknown_users_are_named(accounts: Accounts) -> None:
    for work in (
        accounts.user("x"),
        accounts.set_role(MASTER, "x", Role.ADMIN),
        accounts.set_disabled(MASTER, "x", disabled=True),
        accounts.set_password(MASTER, "x", PASSWORD),
    ):
        with pytest.raises(UnknownUserError):
            await work


async def test_without_redis_logins_say_so(
    gone: Redis, keyring: Keyring, passwords: Passwords
) -> None:
    accounts = Accounts(AccountStore(gone), keyring, passwords)
    for _ in range(2):
        with pytest.raises(AccountsUnavailableError):
            await accounts.login("alice", PASSWORD)
    with pytest.raises(AccountsUnavailableError):
        await accounts.refresh(keyring.session_token(tokens.REFRESH_PREFIX, "s", 1))
