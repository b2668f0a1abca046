"""The routes of models: pages, comparisons, aliases, files; who may, and what is written down."""

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from mev.auth.model import MASTER, CredentialKind, Permission, Principal
from mev.control.keys import Keys, open_keys
from mev.registry.routes import router
from mev.server.app import create_app
from mev.server.security import build
from mev.settings import load
from mev.store.folder import DataFolder
from mev.store.redis import Redis
from tests.unit.registry.samples import KEY, Made

URL = "/api/training/models"
MASTER_KEY = "the-master-key-of-the-tests"
IDS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(5)]


class Trail:
    """Recorder of the audit trail."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, str, str]] = []

    async def __call__(
        self,
        actor: str,
        action: str,
        object: str,  # noqa: A002
        outcome: str,
        details: Mapping[str, object],
    ) -> None:
        assert actor == MASTER.id
        self.facts.append((action, object, outcome))


@pytest.fixture
def trail() -> Trail:
    return Trail()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return open_keys(tmp_path / "control", seed_hex=None, key_id=None, now_ns=1)


@asynccontextmanager
async def serving(
    made: Made, keys: Keys, trail: Trail, folder: Path
) -> AsyncIterator[httpx.AsyncClient]:
    redis = Redis(f"unix://{folder}/none", timeout_s=1)
    security = build(
        load(mev_data_dir=folder, master_api_key=MASTER_KEY), DataFolder(folder), redis, lambda: 0
    )
    security.passwords.close()
    app = create_app([router(made.registry, keys, audit=trail)], [], security.gate)
    headers = {"X-API-Key": MASTER_KEY}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://mev.example", headers=headers
    ) as client:
        yield client
    await redis.close()


@pytest.fixture
async def http(
    made: Made, keys: Keys, trail: Trail, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(made, keys, trail, tmp_path) as client:
        yield client


def add(made: Made, number: int, **changes: Any) -> str:
    """Register a manifest alone: what is told of a model needs no file of it."""
    lineage = {
        "export_manifest_sha256": "e" * 64,
        "spec": {"target": "landed", "validation_share": 0.2, "params": {"eta": 0.1}},
    }
    created_at = f"2090-01-01T00:00:{number:02}.000+00:00"
    manifest = replace(
        made.manifest,
        **{"model_id": IDS[number], "created_at": created_at, "lineage": lineage, **changes},
    )
    made.registry.add(manifest, {}, KEY)
    return IDS[number]


async def ids(http: httpx.AsyncClient, **params: Any) -> tuple[list[str], str | None]:
    answer = (await http.get(URL, params=params)).raise_for_status().json()
    return [item["id"] for item in answer["items"]], answer["next_cursor"]


async def test_pages_meet_and_end(made: Made, http: httpx.AsyncClient) -> None:
    for number in range(5):
        add(made, number)
    (made.folder / f"{'2' * 64}.manifest.json").write_bytes(b"{}")
    expected, seen, cursor = [*reversed(IDS), made.manifest.model_id], [], None
    while True:
        page, cursor = await ids(http, limit=4, **({"cursor": cursor} if cursor else {}))
        seen.append(page)
        if cursor is None:
            break
    assert seen == [expected[:4], expected[4:]]
    assert await ids(http, limit=6) == (expected, None)
    assert list((await http.get(URL)).json()["refused"]) == ["2" * 64]
    wrong = await http.get(URL, params={"cursor": "f" * 64})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_cursor")
    assert (await http.get(URL, params={"limit": 0})).status_code == 422


async def test_filters(made: Made, http: httpx.AsyncClient) -> None:
    landed, tips, away = (
        add(made, 0),
        add(made, 1, lineage={"spec": {"target": "tip_lamports"}}),
        add(made, 2),
    )
    made.registry.point("best", tips)
    made.registry.archive(away)
    assert await ids(http, target="landed") == ([landed], None)
    assert await ids(http, target="landed", archived=True) == ([away, landed], None)
    assert await ids(http, target="landed", archived=True, limit=1, cursor=away) == ([landed], None)
    assert await ids(http, alias="best") == ([tips], None)
    assert await ids(http, alias="best", target="landed") == ([], None)


async def test_a_comparison_of_the_same_rows(made: Made, http: httpx.AsyncClient) -> None:
    a = add(made, 0, metrics={"auc": 0.75, "brier": 0.25})
    spec = {"target": "landed", "validation_share": 0.2, "params": {"eta": 0.3}}
    lineage = {"export_manifest_sha256": "e" * 64, "spec": spec}
    fewer = {
        "features": made.manifest.features[:11],
        "golden_rows": made.manifest.golden_rows[:, :11],
        "baseline": None,
    }
    b = add(made, 1, metrics={"auc": 0.875, "rmse": 2.0}, lineage=lineage, trees=3, **fewer)
    made.registry.point("best", b)
    found = (
        (await http.get(f"{URL}/compare", params={"a": a, "b": "best"})).raise_for_status().json()
    )
    assert (found["a"]["id"], found["b"]["id"], found["same_validation"], found["caveats"]) == (
        a,
        b,
        True,
        [],
    )
    assert found["metrics"] == {
        "auc": {"a": 0.75, "b": 0.875, "difference": 0.125},
        "brier": {"a": 0.25, "b": None, "difference": None},
        "rmse": {"a": None, "b": 2.0, "difference": None},
    }
    assert found["parameters"] == {
        "trees": {"a": 12, "b": 3, "difference": -9},
        "params.eta": {"a": 0.1, "b": 0.3, "difference": pytest.approx(0.2)},
    }
    assert found["features"] == {"only_a": [made.manifest.features[11]], "only_b": []}
    assert (await http.get(f"{URL}/compare", params={"a": a, "b": "nobody"})).json()[
        "code"
    ] == "unknown_model"


@pytest.mark.parametrize(
    ("export", "spec", "caveat"),
    [
        ("f" * 64, {"target": "landed", "validation_share": 0.2}, "different data"),
        (
            "e" * 64,
            {"target": "landed", "validation_share": 0.3},
            "shares of the newest slots differ: 0.2 and 0.3",
        ),
        ("e" * 64, {"target": "tip_lamports", "validation_share": 0.2}, "targets differ"),
        (
            "e" * 64,
            {"target": "landed", "validation_share": 0.2, "objective": "regression"},
            "objectives differ",
        ),
        (None, {"target": "landed", "validation_share": 0.2}, "not known"),
        (
            "e" * 64,
            {"target": "landed", "validation_share": 0.2, "searched": True},
            "the parameters of b alone",
        ),
    ],
)
async def test_a_comparison_of_other_rows_says_so(
    made: Made, http: httpx.AsyncClient, export: str | None, spec: dict[str, Any], caveat: str
) -> None:
    search = {"trials": 20} if spec.pop("searched", False) else None
    a, b = (
        add(made, 0),
        add(made, 1, lineage={"export_manifest_sha256": export, "spec": spec, "search": search}),
    )
    found = (await http.get(f"{URL}/compare", params={"a": a, "b": b})).json()
    assert found["same_validation"] is False
    assert [caveat in each for each in found["caveats"]] == [True]


@pytest.mark.parametrize(
    ("data", "cutoff_slot", "caveats"),
    [
        ("d" * 64, 77, []),
        ("c" * 64, 77, ["they were validated on different data"]),
        ("d" * 64, 78, ["their first validation slots differ: 77 and 78"]),
    ],
)
async def test_models_of_two_exports_compare_when_files_and_cutoff_are_the_same(
    made: Made, http: httpx.AsyncClient, data: str, cutoff_slot: int, caveats: list[str]
) -> None:
    def lineage(manifest: str, data: str, cutoff_slot: int) -> dict[str, Any]:
        return {
            "export_manifest_sha256": manifest * 64,
            "export_data_sha256": data,
            "rows": {"cutoff_slot": cutoff_slot},
            "spec": {"target": "landed", "validation_share": 0.2},
        }

    a = add(made, 0, lineage=lineage("a", "d" * 64, 77))
    b = add(made, 1, lineage=lineage("b", data, cutoff_slot))
    found = (await http.get(f"{URL}/compare", params={"a": a, "b": b})).json()
    assert (found["same_validation"], found["caveats"]) == (not caveats, caveats)


async def test_aliases_and_the_archive_are_written_down(
    made: Made, http: httpx.AsyncClient, trail: Trail
) -> None:
    model_id = made.manifest.model_id
    assert (await http.put(f"{URL}/aliases/best", json={"model": model_id})).json()["aliases"] == [
        "best"
    ]
    in_use = await http.post(f"{URL}/best/archive")
    assert (in_use.status_code, in_use.json()["code"]) == (409, "model_in_use")
    assert (await http.delete(f"{URL}/aliases/best")).status_code == 204
    assert (await http.post(f"{URL}/{model_id}/archive")).json()["archived_at"] is not None
    assert await ids(http) == ([], None)
    assert (await http.put(f"{URL}/aliases/best", json={"model": model_id})).json()[
        "code"
    ] == "model_in_use"
    assert (await http.post(f"{URL}/{model_id}/restore")).json()["archived_at"] is None
    assert await ids(http) == ([model_id], None)
    assert trail.facts == [
        ("models.alias", "best", "ok"),
        ("models.archive", model_id, "ok"),
        ("models.archive", model_id, "refused"),
        ("models.alias", "best", "ok"),
        ("models.archive", model_id, "ok"),
        ("models.alias", "best", "ok"),
        ("models.alias", "best", "refused"),
        ("models.restore", model_id, "ok"),
    ]


@pytest.mark.parametrize("alias", ["champion", "challenger", "shadow", "compare", "aliases"])
async def test_aliases_that_deployments_move_are_refused(
    made: Made, http: httpx.AsyncClient, trail: Trail, alias: str
) -> None:
    made.registry.point(alias, made.manifest.model_id)
    for answer in (
        await http.put(f"{URL}/aliases/{alias}", json={"model": made.manifest.model_id}),
        await http.delete(f"{URL}/aliases/{alias}"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "reserved_alias")
    assert (made.registry.get(alias).aliases, trail.facts) == ((alias,), [])


async def test_what_is_no_alias_and_no_model(http: httpx.AsyncClient) -> None:
    assert (await http.put(f"{URL}/aliases/Best", json={"model": "x"})).json()[
        "code"
    ] == "invalid_input"
    assert (await http.put(f"{URL}/aliases/best", json={"model": "x"})).json()[
        "code"
    ] == "unknown_model"
    assert (
        await http.put(f"{URL}/aliases/best", json={"model": "x", "more": 1})
    ).status_code == 422
    for verb in ("archive", "restore", "sign"):
        assert (await http.post(f"{URL}/nobody/{verb}")).json()["code"] == "unknown_model"


async def test_signing_again_is_refused_where_nobody_vouches(
    made: Made, http: httpx.AsyncClient, trail: Trail
) -> None:
    model_id = made.manifest.model_id
    assert (await http.post(f"{URL}/{model_id}/sign")).json()["id"] == model_id
    path = made.folder / f"{model_id}.manifest.json"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content.replace(b"trainer", b"nobody7"))
    assert (await http.post(f"{URL}/{model_id}/sign")).json()["code"] == "unsigned_manifest"
    assert [outcome for _, _, outcome in trail.facts] == ["ok", "ok", "refused"]


async def test_files_come_whole_in_ranges_and_once(made: Made, http: httpx.AsyncClient) -> None:
    model_id = made.manifest.model_id
    made.registry.point("best", model_id)
    for form in ("mevt", "so", "ubj"):
        content, digest = made.path(form).read_bytes(), made.manifest.digest(form)
        url = f"{URL}/best/files/{digest}.{form}"
        whole = await http.get(url)
        assert (whole.content, whole.headers["etag"]) == (content, f'"{digest}"')
        assert "immutable" in whole.headers["cache-control"]
        part = await http.get(url, headers={"Range": "bytes=10-19", "If-Range": f'"{digest}"'})
        assert (part.status_code, part.content) == (206, content[10:20])
        other = await http.get(url, headers={"Range": "bytes=10-19", "If-Range": '"another"'})
        assert (other.status_code, other.content) == (200, content)
        assert (await http.get(url, headers={"Range": f"bytes={len(content)}-"})).status_code == 416
        again = await http.get(url, headers={"If-None-Match": f'"x", W/"{digest}"'})
        assert (again.status_code, again.content) == (304, b"")
    manifest = await http.get(f"{URL}/{model_id}/files/{model_id}.manifest.json")
    assert manifest.content == (made.folder / f"{model_id}.manifest.json").read_bytes()
    assert manifest.headers["etag"] == f'"{hashlib.sha256(manifest.content).hexdigest()}"'
    assert manifest.headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(
    "name",
    [
        "registry.json",
        ".lock",
        "%2e%2e",
        "..%2fregistry.json",
        "%2e%2e%2fcontrol%2fsigning-key",
        "..%5cregistry.json",
        "%2fetc%2fpasswd",
        "{other}.manifest.json",
        "{model}.mevt",
        "{model}.ubj%00",
        "{model}.manifest.json.",
        "",
    ],
)
async def test_no_other_file_comes(made: Made, http: httpx.AsyncClient, name: str) -> None:
    model_id, other = made.manifest.model_id, add(made, 0)
    made.registry.point("best", model_id)
    path = f"{URL}/{model_id}/files/" + name.format(model=model_id, other=other)
    answer = await http.send(
        http.build_request("GET", httpx.URL("http://mev.example").copy_with(raw_path=path.encode()))
    )
    assert answer.status_code in {404, 405}
    assert b"signatures" not in answer.content


async def test_a_link_and_a_missing_file_do_not_come(
    made: Made, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    path, url = made.path("mevt"), f"{URL}/{made.manifest.model_id}/files/{made.path('mevt').name}"
    path.unlink()
    assert (await http.get(url)).json()["code"] == "model_missing"
    (tmp_path / "secret").write_text("secret")
    path.symlink_to(tmp_path / "secret")
    assert (await http.get(url)).json()["code"] == "unsafe_model_file"


async def test_a_file_that_was_changed_does_not_come_under_the_digest_it_had(
    made: Made, http: httpx.AsyncClient
) -> None:
    path = made.path("mevt")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    answer = await http.get(f"{URL}/{made.manifest.model_id}/files/{path.name}")
    assert answer.json()["code"] == "bad_model_digest"


async def test_who_may_what(
    made: Made, keys: Keys, trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = made.manifest.model_id
    file = f"{URL}/{model_id}/files/{model_id}.manifest.json"
    reads = [
        URL,
        f"{URL}/compare?a={model_id}&b={model_id}",
        f"{URL}/{model_id}",
        f"{URL}/{model_id}/card",
    ]
    changes = [
        ("PUT", f"{URL}/aliases/best"),
        ("DELETE", f"{URL}/aliases/best"),
        *(("POST", f"{URL}/{model_id}/{verb}") for verb in ("archive", "restore", "sign")),
    ]
    for permission, expected in (
        (Permission.MODELS_READ, {"reads": 200, "file": 200, "changes": {403}}),
        (Permission.AGENTS_ENROL, {"reads": 403, "file": 200, "changes": {403}}),
        (Permission.CONTROL_READ, {"reads": 403, "file": 403, "changes": {403}}),
        (Permission.MODELS_DEPLOY, {"reads": 403, "file": 403, "changes": {200, 204}}),
    ):
        who = Principal(
            id=MASTER.id,
            name="somebody",
            kind=CredentialKind.KEY,
            permissions=frozenset({permission}),
        )
        monkeypatch.setattr("mev.auth.authenticator.MASTER", who)
        async with serving(made, keys, trail, tmp_path) as http:
            assert {(await http.get(url)).status_code for url in reads} == {expected["reads"]}
            assert (await http.get(file)).status_code == expected["file"]
            found = {
                (
                    await http.request(
                        verb, url, json={"model": model_id} if verb == "PUT" else None
                    )
                ).status_code
                for verb, url in changes
            }
            assert found == expected["changes"]


async def test_machines_get_what_agents_load_by_its_id_and_hear_of_nothing_else(
    made: Made, keys: Keys, trail: Trail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = made.manifest.model_id
    other = add(made, 0)
    made.registry.archive(other)
    made.registry.point("best", model_id)
    names = {form: f"{made.manifest.digest(form)}.{form}" for form in ("mevt", "so", "ubj")} | {
        "manifest": f"{model_id}.manifest.json"
    }
    who = Principal(
        id=MASTER.id,
        name="somebody",
        kind=CredentialKind.KEY,
        permissions=frozenset({Permission.AGENTS_ENROL}),
    )
    monkeypatch.setattr("mev.auth.authenticator.MASTER", who)
    async with serving(made, keys, trail, tmp_path) as http:
        for form in ("mevt", "so", "manifest"):
            assert (await http.get(f"{URL}/{model_id}/files/{names[form]}")).status_code == 200
        # What is in force may have left the list.
        assert (await http.get(f"{URL}/{other}/files/{other}.manifest.json")).status_code == 200
        for path in (
            f"{model_id}/files/{names['ubj']}",
            f"best/files/{names['mevt']}",
            f"best/files/{names['manifest']}",
            f"{model_id}/files/{'0' * 64}.mevt",
            f"{model_id}/files/registry.json",
            f"{'0' * 64}/files/{'0' * 64}.manifest.json",
        ):
            answer = await http.get(f"{URL}/{path}")
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model_file")
            assert not any(name in answer.text for name in names.values())


async def test_a_browser_is_asked_for_a_key_where_a_person_opens_a_page(
    made: Made, http: httpx.AsyncClient
) -> None:
    del http.headers["X-API-Key"]
    card = await http.get(f"{URL}/{made.manifest.model_id}/card")
    assert (card.status_code, card.headers["www-authenticate"][:5]) == (401, "Basic")
    assert "Basic" not in (await http.get(f"{URL}/{made.manifest.model_id}")).headers.get(
        "www-authenticate", ""
    )
