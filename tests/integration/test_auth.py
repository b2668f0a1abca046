"""Tests of accounts over HTTP, WebSocket and the command line, including attacks."""

import asyncio
import contextlib
import json
import os
import pty
import socket
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from mev.auth.model import ROLES, Permission, Role
from tests.services.system import MEV, RunningSystem
from tests.services.waits import until

PASSWORD = "correct horse battery"
PUBLIC = {
    ("get", "/api/health/"),
    ("get", "/api/health/ready"),
    ("post", "/api/auth/login"),
    ("post", "/api/auth/refresh"),
    ("get", "/api/realtime/ws"),
    ("get", "/api/realtime/webtransport"),
}
SUBSCRIBE = '{"op": "subscribe", "id": "s1", "topics": ["tick"]}'


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """Run an embedded system with a short credential cache, so that revocations apply soon."""
    quick = {
        "ACCESS_CACHE_S": "0.3",
        "LOGIN_LOCK_S": "600",
        "LOGIN_FREE_FAILURES": "3",
        "IP_RATE_BURST": "100000",
    }
    running = RunningSystem(tmp_path_factory.mktemp("mev") / "data", **quick)
    running.start()
    with running.client() as master:
        for role in Role:
            master.post(
                "/api/auth/users", json={"name": f"the-{role}", "password": PASSWORD, "role": role}
            ).raise_for_status()
    yield running
    assert running.stop() == 0, running.log.read_text()


def url(system: RunningSystem) -> str:
    return system.url.replace("http", "ws", 1) + "/api/realtime/ws"


def log_in(
    system: RunningSystem, name: str, password: str = PASSWORD, **more: bool
) -> httpx.Response:
    return httpx.post(
        f"{system.url}/api/auth/login", json={"name": name, "password": password, **more}
    )


def bearer(system: RunningSystem, name: str) -> httpx.Client:
    token = log_in(system, name).raise_for_status().json()["access_token"]
    return httpx.Client(
        base_url=system.url, headers={"Authorization": f"Bearer {token}"}, timeout=30
    )


def new_user(http: httpx.Client, name: str, role: Role = Role.OPERATOR) -> str:
    http.post(
        "/api/auth/users", json={"name": name, "password": PASSWORD, "role": role}
    ).raise_for_status()
    return name


def new_key(http: httpx.Client, *scopes: Permission) -> tuple[str, str]:
    made = (
        http.post("/api/auth/keys", json={"name": "test", "scopes": scopes})
        .raise_for_status()
        .json()
    )
    return made["id"], made["key"]


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_a_log_holds_no_secret_and_the_first_password_lies_in_a_file_until_it_is_used(
    system: RunningSystem,
) -> None:
    file = system.data_dir / "first-password"
    (line,) = [line for line in system.log.read_text().splitlines() if line.startswith("Login")]
    assert str(file) in line
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    password = file.read_text().strip()
    assert password not in system.log.read_text()
    assert system.key not in system.log.read_text()
    assert "`mev config key`" in system.log.read_text()
    assert not log_in(system, "admin", "wrong").is_success
    assert file.exists()
    assert log_in(system, "admin", password).is_success
    assert not file.exists()


@pytest.mark.slow
def test_the_first_start_shows_secrets_at_a_terminal_once(tmp_path: Path) -> None:
    system, (outer, inner) = RunningSystem(tmp_path / "data"), pty.openpty()
    process = subprocess.Popen(
        [MEV, "up"], env=system.environment, stdout=subprocess.DEVNULL, stderr=inner
    )
    os.close(inner)
    shown = b""
    try:
        while b"Login" not in shown or not shown.endswith(b"\n"):
            shown += os.read(outer, 65_536)
    finally:
        process.kill()
        process.wait()
        os.close(outer)
    assert system.key.encode() in shown
    assert b"shown this once" in shown
    assert not (system.data_dir / "first-password").exists()


@pytest.mark.slow
def test_a_changed_password_removes_the_file_of_the_first(tmp_path: Path) -> None:
    system = RunningSystem(tmp_path / "data")
    system.start()
    try:
        assert (system.data_dir / "first-password").exists()
        command(
            system, "user", "password", "admin", "--password-stdin", stdin="another long password\n"
        )
        assert not (system.data_dir / "first-password").exists()
    finally:
        system.kill()


@pytest.mark.parametrize("role", Role)
def test_every_route_is_open_to_exactly_the_roles_it_is_for(
    system: RunningSystem, http: httpx.Client, role: Role
) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert {path for path in paths if path.startswith("/api/auth/")} >= {
        "/api/auth/login",
        "/api/auth/users",
        "/api/auth/keys/{id}",
    }
    refused, called = set(), 0
    with bearer(system, f"the-{role}") as client:
        for path, operations in paths.items():
            for method, operation in operations.items():
                needed = operation.get("x-permission")
                if needed is None:
                    assert (method, path) in PUBLIC
                    assert operation["security"] == []
                    continue
                # A body that no endpoint takes: whoever may call is told so, and nothing is done.
                target = path.replace("{type}", "tick").replace("{", "no-").replace("}", "")
                answer = client.request(
                    method, target, content=b"[]", headers={"Content-Type": "application/json"}
                )
                called += 1
                assert answer.status_code != 401, path
                is_refused = answer.status_code == 403 and answer.json().get("permission") == needed
                assert is_refused is (needed not in ROLES[role]), f"{method} {path} {answer.text}"
                refused |= {needed} if is_refused else set()
    assert called >= 15
    assert bool(refused) is (role is not Role.ADMIN)


def test_strangers_reach_nothing_but_the_public_list(
    system: RunningSystem, http: httpx.Client
) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    with httpx.Client(base_url=system.url) as anonymous:
        for path, operations in paths.items():
            for method in set(operations) | {"get", "post", "delete"}:
                answer = anonymous.request(method, path.replace("{", "").replace("}", ""))
                if (method, path) not in PUBLIC:
                    assert answer.status_code == 401, (method, path)


def test_a_stolen_refresh_token_ends_the_session_for_everyone(
    system: RunningSystem, http: httpx.Client
) -> None:
    def refresh(token: str) -> httpx.Response:
        return httpx.post(f"{system.url}/api/auth/refresh", json={"refresh_token": token})

    first = log_in(system, new_user(http, "victim")).json()
    second = refresh(first["refresh_token"]).raise_for_status().json()
    assert second["refresh_token"] != first["refresh_token"]
    assert code(refresh(first["refresh_token"])) == (401, "session_ended")
    assert code(refresh(second["refresh_token"])) == (401, "session_ended")


@pytest.mark.slow
def test_a_refresh_token_used_twice_ends_the_access_token_at_once(tmp_path: Path) -> None:
    system = RunningSystem(tmp_path / "data", ACCESS_CACHE_S="3600")
    system.start()
    try:
        with system.client() as http:
            first = log_in(system, new_user(http, "victim")).json()
        second = httpx.post(
            f"{system.url}/api/auth/refresh", json={"refresh_token": first["refresh_token"]}
        ).json()
        with httpx.Client(
            base_url=system.url, headers={"Authorization": f"Bearer {second['access_token']}"}
        ) as thief:
            assert thief.get("/api/auth/me").status_code == 200
            again = httpx.post(
                f"{system.url}/api/auth/refresh", json={"refresh_token": first["refresh_token"]}
            )
            assert code(again) == (401, "session_ended")
            assert code(thief.get("/api/auth/me")) == (401, "session_ended")
    finally:
        system.kill()


def test_algorithm_confusion_and_strange_key_ids_are_refused(system: RunningSystem) -> None:
    genuine = log_in(system, "the-admin").json()["access_token"]
    claims = jwt.decode(genuine, options={"verify_signature": False})
    kid = jwt.get_unverified_header(genuine)["kid"]
    secret = (system.data_dir / "jwt-secret-key").read_text().strip()
    header, body, signature = genuine.split(".")
    none = jwt.encode(claims, "", "none", headers={"kid": kid})
    rs256 = jwt.utils.base64url_encode(
        json.dumps({"alg": "RS256", "typ": "JWT", "kid": kid}).encode()
    ).decode()
    forged = [
        none,
        none.rpartition(".")[0] + "." + signature,
        f"{rs256}.{body}.{signature}",
        jwt.encode(claims, "x" * 40, "HS256", headers={"kid": kid}),
        jwt.encode(claims, secret, "HS256", headers={"kid": "wrong"}),
        jwt.encode(
            claims | {"sub": "admin"}, secret, "HS256", headers={"kid": kid}
        ),  # signed by us, for another's session
        f"{header}.{body}.",
    ]
    for token in forged:
        answer = httpx.get(
            f"{system.url}/api/auth/me", headers={"Authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 401, token
    assert httpx.get(
        f"{system.url}/api/auth/me", headers={"Authorization": f"Bearer {genuine}"}
    ).is_success


def test_an_unknown_user_cannot_be_told_from_a_wrong_password(system: RunningSystem) -> None:
    wrong, unknown = (
        log_in(system, "the-analyst", "wrong"),
        log_in(system, "nobody-of-this-name", "wrong"),
    )
    assert wrong.json() == unknown.json()
    assert (wrong.status_code, wrong.headers.keys()) == (
        unknown.status_code,
        unknown.headers.keys(),
    )
    assert code(wrong) == (401, "wrong_password")


def test_a_name_is_locked_after_wrong_passwords_until_an_administrator_unlocks_it(
    system: RunningSystem, http: httpx.Client
) -> None:
    name = new_user(http, "forgetful")
    assert [log_in(system, name, "wrong").status_code for _ in range(4)] == [401, 401, 401, 429]
    locked = log_in(system, name)
    assert code(locked) == (429, "login_locked")
    assert int(locked.headers["retry-after"]) >= 1
    http.put(
        f"/api/auth/users/{name}/password", json={"password": "another long password"}
    ).raise_for_status()
    assert log_in(system, name, "another long password").is_success


class Browser:
    """A page of the dashboard: its cookie, its token."""

    def __init__(self, system: RunningSystem, name: str) -> None:
        self.http = httpx.Client(base_url=system.url, timeout=30)
        answer = self.http.post(
            "/api/auth/login", json={"name": name, "password": PASSWORD, "browser": True}
        ).raise_for_status()
        self.set_cookie = answer.headers["set-cookie"]
        self.own = {"Origin": system.url, "X-CSRF-Token": answer.json()["csrf_token"]}
        self.cookie = {"Cookie": self.set_cookie.partition(";")[0]}


@pytest.fixture
def page(system: RunningSystem) -> Iterator[Browser]:
    browser = Browser(system, "the-operator")
    yield browser
    browser.http.close()


def test_a_page_of_ours_may_read_and_change(page: Browser) -> None:
    assert "HttpOnly" in page.set_cookie
    assert "SameSite=Strict" in page.set_cookie
    me = page.http.get("/api/auth/me").json()
    assert (me["kind"], me["csrf_token"]) == ("browser", page.own["X-CSRF-Token"])
    assert (
        page.http.post(
            "/api/events/bundle", json={"bundle_id": "from-a-page"}, headers=page.own
        ).status_code
        == 202
    )
    assert page.http.post("/api/auth/logout", headers=page.own).status_code == 204
    until(
        lambda: (
            httpx.get(page.http.base_url.join("/api/auth/me"), headers=page.cookie).status_code
            == 401
        )
    )


@pytest.mark.parametrize(
    "path", ["/api/events/bundle", "/api/auth/keys", "/api/control/kill-switch", "/api/auth/logout"]
)
def test_csrf_from_another_origin_changes_nothing(page: Browser, path: str) -> None:
    evil = "https://evil.example"
    for headers in (
        page.own | {"Origin": evil},
        {"Origin": evil},
        {"X-CSRF-Token": page.own["X-CSRF-Token"]},
        {"Origin": page.own["Origin"]},
        page.own | {"X-CSRF-Token": "x"},
        page.own | {"Origin": "null"},
        {"Content-Type": "text/plain"},
    ):
        assert code(page.http.post(path, content=b"{}", headers=headers)) == (
            403,
            "cross_site_request",
        )
    assert page.http.get("/api/auth/me").is_success


def test_a_foreign_page_cannot_log_its_visitor_in(system: RunningSystem) -> None:
    body = {"name": "the-viewer", "password": PASSWORD, "browser": True}
    answer = httpx.post(
        f"{system.url}/api/auth/login", json=body, headers={"Origin": "https://evil.example"}
    )
    assert code(answer) == (403, "cross_site_request")
    assert "set-cookie" not in answer.headers


def test_a_password_remembered_by_the_browser_changes_nothing(system: RunningSystem) -> None:
    with httpx.Client(base_url=system.url, auth=("anyone", system.key)) as browser:
        assert browser.get("/docs").is_success
        assert code(browser.post("/api/events/bundle", json={"bundle_id": "x"})) == (
            403,
            "cross_site_request",
        )


async def test_a_cookie_opens_the_stream_from_a_page_of_ours_only(
    system: RunningSystem, page: Browser
) -> None:
    async with connect(url(system), additional_headers=page.cookie | {"Origin": system.url}) as ws:
        await ws.send(SUBSCRIBE)
        assert json.loads(await ws.recv())["op"] == "subscribed"
    for origin in ({}, {"Origin": "https://evil.example"}):
        with pytest.raises(InvalidStatus) as caught:
            await connect(url(system), additional_headers=page.cookie | origin)
        assert caught.value.response.status_code == 403


def test_every_answer_protects_its_reader(system: RunningSystem, http: httpx.Client) -> None:
    with httpx.Client(base_url=system.url) as anonymous:
        answers = [
            http.get("/docs"),
            http.get("/nope"),
            anonymous.get("/api/health/ready"),
            anonymous.get("/api/auth/me"),
            http.get("/metrics"),
        ]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "strict-transport-security" not in answer.headers


def test_the_documentation_page_holds_no_script_inside(
    system: RunningSystem, http: httpx.Client
) -> None:
    page = http.get("/docs").text
    for part in page.split("<script")[1:]:
        tag, _, rest = part.partition(">")
        assert "src=" in tag
        assert rest.startswith("</script>")
    assert "<style" not in page
    assert "SwaggerUIBundle" in httpx.get(f"{system.url}/docs/assets/start.js").text


@pytest.mark.parametrize(
    "path",
    [
        "/%0d%0aSet-Cookie:%20a=b",
        "/api/auth/users/a%0d%0aX-Evil:%20b",
        "/api/events/%0aSet-Cookie:x",
    ],
)
def test_nothing_sent_becomes_a_header(http: httpx.Client, path: str) -> None:
    answer = http.get(path, headers={"Origin": "https://a.example\tx"})
    assert not {"set-cookie", "x-evil", "access-control-allow-origin"} & set(answer.headers)
    login = http.post(
        "/api/auth/login", json={"name": "a\r\nSet-Cookie: a=b", "password": "x", "browser": True}
    )
    assert login.status_code == 422
    assert "set-cookie" not in login.headers


def test_a_header_cannot_be_split(system: RunningSystem) -> None:
    host, port = system.url.removeprefix("http://").split(":")
    for bad in (
        b"X-API-Key: a\rX-Evil: b",
        b"X-API-Key : k",
        b"X-API-Key\x00: k",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(b"POST /api/events/tick HTTP/1.1\r\nHost: h\r\n" + bad + b"\r\n\r\n")
            assert raw.recv(65536).split(b" ")[1] in {b"400", b"401"}


def test_a_key_does_what_its_scopes_say_and_is_shown_once(
    system: RunningSystem, http: httpx.Client
) -> None:
    with bearer(system, "the-operator") as owner:
        key_id, key = new_key(owner, Permission.EVENTS_WRITE)
        assert key.startswith("mev_")
        listed = owner.get("/api/auth/keys").json()["items"]
        assert key_id in {item["id"] for item in listed}
        assert key.split("_", 2)[2] not in json.dumps(listed)
        assert key_id not in {item["id"] for item in http.get("/api/auth/keys").json()["items"]}
        assert key_id in {
            item["id"]
            for item in http.get("/api/auth/keys?everyone=true&limit=1000").json()["items"]
        }
    with httpx.Client(base_url=system.url, headers={"X-API-Key": key}) as bot:
        assert bot.post("/api/events/bundle", json={"bundle_id": "by-key"}).status_code == 202
        assert code(bot.get("/api/events/bundle")) == (403, "forbidden")
        assert bot.get("/api/auth/me").json()["permissions"] == ["events:write", "self:read"]
        assert code(bot.post("/api/auth/keys", json={"name": "x", "scopes": ["events:write"]})) == (
            403,
            "forbidden",
        )
    used = [
        item["used_at"]
        for item in http.get("/api/auth/keys?everyone=true&limit=1000").json()["items"]
        if item["id"] == key_id
    ]
    assert used[0] is not None


@pytest.mark.parametrize(
    "name", ["a\nb", "\x1b[2Jgone", "tab\t", "\x00", "right\u202eleft", "\u200bunseen", "c1\x9b"]
)
def test_names_hold_nothing_that_cannot_be_seen(http: httpx.Client, name: str) -> None:
    wanted: dict[str, dict[str, object]] = {
        "/api/auth/keys": {"name": name, "scopes": ["events:read"]},
        "/api/auth/users": {"name": name, "password": PASSWORD, "role": "viewer"},
        "/api/auth/login": {"name": name, "password": PASSWORD},
        "/api/control/agents": {"agent_id": name, "module": "m", "public_key": "ab" * 32},
    }
    for path, body in wanted.items():
        answer = http.post(path, json=body)
        assert code(answer) == (422, "invalid_request"), path
        assert [each["place"] for each in answer.json()["errors"]] == [
            f"body.{next(iter(body))}"
        ], path


def test_scopes_and_lifetimes_have_limits(system: RunningSystem) -> None:
    with bearer(system, "the-viewer") as viewer:
        for body, wanted in (
            ({"name": "x", "scopes": ["events:write"]}, "invalid_scope"),
            ({"name": "x", "scopes": ["keys:own"]}, "invalid_scope"),
            ({"name": "x", "scopes": ["events:read"], "days": 4000}, "invalid_lifetime"),
            ({"name": "x", "scopes": []}, "invalid_request"),
            ({"name": "x", "scopes": ["nope"]}, "invalid_request"),
        ):
            assert viewer.post("/api/auth/keys", json=body).json()["code"] == wanted


async def test_a_revoked_key_is_refused_within_seconds_and_its_sockets_closed(
    system: RunningSystem, http: httpx.Client
) -> None:
    key_id, key = await asyncio.to_thread(new_key, http, Permission.STREAM_READ)
    headers = {"X-API-Key": key}
    by_header, by_message = (
        await connect(url(system), additional_headers=headers),
        await connect(url(system)),
    )
    await by_message.send(json.dumps({"op": "auth", "api_key": key}))
    assert json.loads(await by_message.recv()) == {"op": "authenticated"}
    async with httpx.AsyncClient(base_url=system.url, headers=headers) as bot:
        assert (await bot.get("/api/auth/me")).is_success
        assert (await asyncio.to_thread(http.delete, f"/api/auth/keys/{key_id}")).status_code == 204
        async with asyncio.timeout(20):
            for ws in (by_header, by_message):
                with pytest.raises(ConnectionClosed):
                    await ws.recv()
                assert ws.close_code == 4401
            while (await bot.get("/api/auth/me")).status_code != 401:  # noqa: ASYNC110 - an answer
                await asyncio.sleep(0.05)
    with pytest.raises(InvalidStatus) as caught:
        await connect(url(system), additional_headers=headers)
    assert caught.value.response.status_code == 401


async def test_a_disabled_user_loses_tokens_sockets_and_keys(
    system: RunningSystem, http: httpx.Client
) -> None:
    name = await asyncio.to_thread(new_user, http, "leaver")
    leaver = await asyncio.to_thread(bearer, system, name)
    _, key = await asyncio.to_thread(new_key, leaver, Permission.STREAM_READ)
    ws = await connect(
        url(system), additional_headers={"Authorization": leaver.headers["Authorization"]}
    )
    changed = await asyncio.to_thread(
        http.patch, f"/api/auth/users/{name}", json={"disabled": True}
    )
    assert changed.json()["disabled"] is True
    async with asyncio.timeout(20):
        with pytest.raises(ConnectionClosed):
            await ws.recv()
    assert ws.close_code == 4401
    with httpx.Client(base_url=system.url, headers={"X-API-Key": key}) as bot:
        for client in (leaver, bot):
            await asyncio.to_thread(until, partial(is_refused, client))
    leaver.close()
    assert code(await asyncio.to_thread(log_in, system, name)) == (401, "wrong_password")


def is_refused(client: httpx.Client) -> bool:
    return client.get("/api/auth/me").status_code == 401


async def test_the_stream_asks_for_its_permission(
    system: RunningSystem, http: httpx.Client
) -> None:
    _, key = await asyncio.to_thread(new_key, http, Permission.EVENTS_WRITE)
    with pytest.raises(InvalidStatus) as caught:
        await connect(url(system), additional_headers={"X-API-Key": key})
    assert caught.value.response.status_code == 403
    async with connect(url(system)) as ws:
        await ws.send(json.dumps({"op": "auth", "api_key": key}))
        refused = json.loads(await ws.recv())
        assert (refused["op"], refused["code"], refused["permission"]) == (
            "error",
            "forbidden",
            "stream:read",
        )
        with pytest.raises(ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 1008


def test_lists_come_in_pages(http: httpx.Client) -> None:
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = http.get(
            "/api/auth/users", params={"limit": 2} | ({"cursor": cursor} if cursor else {})
        ).json()
        assert len(page["items"]) <= 2
        seen += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert {f"the-{role}" for role in Role} | {"admin"} <= set(seen)
    assert len(set(seen)) == len(seen)
    assert code(http.get("/api/auth/users?cursor=x")) == (400, "invalid_cursor")
    assert code(http.get("/api/auth/users?cursor=W251bGxd")) == (400, "invalid_cursor")  # [null]


def command(
    system: RunningSystem, *arguments: str, stdin: str = "", check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [MEV, *arguments],
        env=system.environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture
def logged_out(system: RunningSystem) -> Iterator[Path]:
    file = system.data_dir / "login.json"
    yield file
    with contextlib.suppress(FileNotFoundError):
        file.unlink()


@pytest.mark.slow
def test_accounts_are_kept_from_the_command_line(system: RunningSystem, logged_out: Path) -> None:
    command(
        system,
        "user",
        "add",
        "carol",
        "--role",
        "operator",
        "--password-stdin",
        stdin=f"{PASSWORD}\n",
    )
    assert {"carol", "operator"} <= set(command(system, "user", "list").stdout.split())
    assert (
        json.loads(command(system, "user", "role", "carol", "ml_engineer", "--json").stdout)["role"]
        == "ml_engineer"
    )

    assert (
        "logged in as carol"
        in command(system, "login", "carol", "--password-stdin", stdin=f"{PASSWORD}\n").stdout
    )
    assert logged_out.stat().st_mode & 0o777 == 0o600
    refused = command(system, "user", "list", check=False)
    assert refused.returncode == 1
    assert "users:manage" in refused.stderr
    key = command(
        system, "key", "create", "trainer", "--scope", "datasets:read", "--scope", "events:read"
    ).stdout.strip()
    assert httpx.get(
        f"{system.url}/api/datasets/schema/tick", headers={"X-API-Key": key}
    ).is_success
    (item,) = json.loads(command(system, "key", "list", "--json").stdout)["items"]
    assert (item["name"], item["owner"], item["state"]) == ("trainer", "carol", "active")
    twin = command(system, "key", "create", "trainer", "--scope", "datasets:read").stdout.strip()
    refused = command(system, "key", "revoke", "trainer", check=False)
    assert (
        refused.returncode,
        item["id"] in refused.stderr,
        "name one by its id" in refused.stderr,
    ) == (2, True, True)
    command(system, "key", "revoke", item["id"])
    command(system, "key", "revoke", "trainer")  # of the two, one is active
    assert (
        httpx.get(f"{system.url}/api/datasets/schema/tick", headers={"X-API-Key": twin}).status_code
        == httpx.codes.UNAUTHORIZED
    )
    states = {
        one["state"] for one in json.loads(command(system, "key", "list", "--json").stdout)["items"]
    }
    assert states == {"revoked"}
    assert "no key" in command(system, "key", "revoke", "trainer", check=False).stderr
    assert "logged out" in command(system, "logout").stdout
    assert not logged_out.exists()

    assert "carol" in command(system, "user", "list").stdout  # with the master key again
    command(
        system, "user", "password", "carol", "--password-stdin", stdin="another long password\n"
    )
    assert log_in(system, "carol", "another long password").is_success
    command(system, "user", "disable", "carol")
    assert not log_in(system, "carol", "another long password").is_success
    command(system, "user", "enable", "carol")
    assert "no terminal" in command(system, "user", "password", "carol", check=False).stderr


@pytest.mark.slow
def test_commands_at_the_same_time_exchange_one_refresh_token(
    system: RunningSystem, logged_out: Path
) -> None:
    command(system, "login", "the-admin", "--password-stdin", stdin=f"{PASSWORD}\n")
    kept = json.loads(logged_out.read_text())
    logged_out.write_text(json.dumps(kept | {"access_expires_s": 0}))
    running = [
        subprocess.Popen([MEV, "key", "list"], env=system.environment, stdout=subprocess.DEVNULL)
        for _ in range(3)
    ]
    assert [process.wait(40) for process in running] == [0, 0, 0]
    assert json.loads(logged_out.read_text())["refresh_token"] != kept["refresh_token"]


def test_a_login_that_has_ended_is_said_and_forgotten(
    system: RunningSystem, logged_out: Path
) -> None:
    command(system, "login", "the-admin", "--password-stdin", stdin=f"{PASSWORD}\n")
    kept = json.loads(logged_out.read_text())
    logged_out.write_text(json.dumps(kept | {"access_expires_s": 0, "refresh_token": "mevr_a_1_b"}))
    ended = command(system, "user", "list", check=False)
    assert ended.returncode == 1
    assert "mev login" in ended.stderr
    assert not logged_out.exists()


@pytest.mark.slow
def test_a_revocation_outlives_a_crash(tmp_path: Path) -> None:
    running = RunningSystem(tmp_path / "data")
    running.start()
    with running.client() as http:
        key_id, key = new_key(http, Permission.EVENTS_READ)
        kept_id, kept = new_key(http, Permission.EVENTS_READ)
        http.delete(f"/api/auth/keys/{key_id}").raise_for_status()
    running.kill()
    running.start()
    assert [
        httpx.get(f"{running.url}/api/auth/me", headers={"X-API-Key": text}).status_code
        for text in (key, kept)
    ] == [401, 200]
    assert running.log.read_text().count("first-password") == 1
    assert running.stop() == 0
    assert kept_id


def test_the_audit_trail_tells_who_did_what(system: RunningSystem, http: httpx.Client) -> None:
    new_user(http, "audited")
    log_in(system, "audited", "wrong")
    wanted = {
        ("master", "user.add", "audited", "ok"),
        ("user:audited", "login", "audited", "refused"),
    }

    def told() -> bool:
        items = http.get("/api/control/audit-log?limit=1000").raise_for_status().json()["items"]
        found: set[Any] = {
            (item["actor"], item["action"], item["object"], item["outcome"]) for item in items
        }
        return wanted <= found

    until(told)
