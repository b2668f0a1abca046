from pathlib import Path

import pytest
from pydantic import SecretStr

from mev.settings import MASKED, InvalidSettingsError, Settings, load, parse_kafka_options, shown

SEED = "0f" * 32
SECRET = "s3cret-s3cret-s3cret-s3cret-s3cret"

# Every variable that users rely on: a text, and what is read from it (secrets: the text again).
DOCUMENTED: dict[str, tuple[str, object]] = {
    "API_PORT": ("9000", 9000),
    "API_WORKERS": ("2", 2),
    "KAFKA_BROKERS": ("a:9092,b:9093", "a:9092,b:9093"),
    "REDIS_URL": ("redis://user:pw@cache:6390/1", "redis://user:pw@cache:6390/1"),
    "CLICKHOUSE_HOST": ("store", "store"),
    "CLICKHOUSE_PORT": ("8124", 8124),
    "CLICKHOUSE_DATABASE": ("mev_2", "mev_2"),
    "JWT_SECRET_KEY": (SECRET, SECRET),
    "CTRL_SIGN_SK_HEX": (SEED, SEED),
    "CTRL_PUBKEY_ID": ("key-1", "key-1"),
    "MASTER_API_KEY": (SECRET, SECRET),
    "RATE_LIMIT_PER_SECOND": ("50", 50),
    "RATE_LIMIT_BURST": ("75", 75),
    "BATCH_WINDOW_MS": ("10", 10.0),
    "BATCH_MAX_SIZE": ("128", 128),
    "ENABLE_WEBTRANSPORT": ("false", False),
    "WT_HOST": ("0.0.0.0", "0.0.0.0"),
    "WT_PORT": ("4434", 4434),
    "MODEL_DIR": ("/models", Path("/models")),
    "EXPORT_DIR": ("/exports", Path("/exports")),
    "OBJECT_STORE": ("s3://bucket/mev", "s3://bucket/mev"),
    "AWS_SECRET_ACCESS_KEY": (SECRET, SECRET),
}
SECRETS = {
    "REDIS_URL",
    "JWT_SECRET_KEY",
    "CTRL_SIGN_SK_HEX",
    "MASTER_API_KEY",
    "CLICKHOUSE_PASSWORD",
    "KAFKA_OPTIONS",
    "AWS_SECRET_ACCESS_KEY",
}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def refusal(**overrides: object) -> str:
    with pytest.raises(InvalidSettingsError) as caught:
        load(**overrides)
    return caught.value.detail


def test_nothing_set_means_everything_embedded() -> None:
    settings = load()
    assert settings.embedded == ("kafka", "redis", "clickhouse")
    assert settings.effective_workers == 1
    assert (settings.api_port, settings.batch_window_ms, settings.batch_max_size) == (
        8000,
        15.0,
        256,
    )
    assert settings.mev_data_dir == Path.home() / ".local/share/mev"
    assert settings.clickhouse_database == "mev"


def test_a_service_that_is_set_is_not_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BROKERS", "localhost:9092")
    monkeypatch.setenv("CLICKHOUSE_HOST", "localhost")
    settings = load()
    assert settings.embedded == ("redis",)
    assert settings.effective_workers == 1
    monkeypatch.setenv("REDIS_URL", "unix:///run/redis.sock")
    assert load().embedded == ()
    assert load().effective_workers == 4


@pytest.mark.parametrize("variable", DOCUMENTED)
def test_every_documented_variable_is_read(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value = DOCUMENTED[variable]
    monkeypatch.setenv(variable, text)
    settings = load()
    assert settings.model_fields_set == {variable.lower()}
    found = getattr(settings, variable.lower())
    assert isinstance(found, SecretStr) == (variable in SECRETS)
    assert (found.get_secret_value() if isinstance(found, SecretStr) else found) == value


@pytest.mark.parametrize("variable", DOCUMENTED)
def test_an_empty_variable_counts_as_not_set(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "")
    assert not load().model_fields_set


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("API_PORT", "65536"),
        ("API_PORT", "-1"),
        ("API_PORT", "http"),
        ("API_WORKERS", "0"),
        ("KAFKA_BROKERS", "localhost"),
        ("KAFKA_BROKERS", ":9092"),
        ("KAFKA_BROKERS", "a:9092,b"),
        ("KAFKA_BROKERS", "a:9092,"),
        ("KAFKA_BROKERS", "a:99999"),
        ("KAFKA_OPTIONS", "[]"),
        ("KAFKA_OPTIONS", "{"),
        ("KAFKA_OPTIONS", '{"a": {}}'),
        ("REDIS_URL", "localhost:6379"),
        ("REDIS_URL", "http://localhost"),
        ("CLICKHOUSE_DATABASE", "mev; DROP TABLE tick"),
        ("CLICKHOUSE_DATABASE", "`"),
        ("JWT_SECRET_KEY", "short"),
        ("CTRL_SIGN_SK_HEX", "0f" * 31),
        ("CTRL_SIGN_SK_HEX", "zz" * 32),
        ("CTRL_PUBKEY_ID", "a b"),
        ("MASTER_API_KEY", "short"),
        ("RATE_LIMIT_PER_SECOND", "0"),
        ("BATCH_WINDOW_MS", "0"),
        ("BATCH_WINDOW_MS", "nan"),
        ("BATCH_MAX_SIZE", "1.5"),
        ("ENABLE_WEBTRANSPORT", "perhaps"),
        ("SERVICE_TIMEOUT_S", "inf"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_a_bad_value_names_its_variable(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    assert refusal().startswith(f"{variable}: ")
    assert "; " not in refusal()


@pytest.mark.parametrize(
    "variable",
    ["JWT_SECRET_KEY", "CTRL_SIGN_SK_HEX", "MASTER_API_KEY", "REDIS_URL", "KAFKA_OPTIONS"],
)
def test_a_bad_secret_is_not_repeated(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "hunter2")
    assert "hunter2" not in refusal()


def test_every_bad_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "x")
    monkeypatch.setenv("WT_PORT", "y")
    assert {part.partition(":")[0] for part in refusal().split("; ")} == {"API_PORT", "WT_PORT"}


def test_secrets_are_masked_where_settings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {name: text for name, (text, _) in DOCUMENTED.items() if name in SECRETS}
    values |= {"CLICKHOUSE_PASSWORD": SECRET, "KAFKA_OPTIONS": f'{{"sasl.password": "{SECRET}"}}'}
    for name, text in values.items():
        monkeypatch.setenv(name, text)
    rows = {name: (value, origin) for name, value, origin, _ in shown(load())}
    assert {name: rows[name] for name in values} == dict.fromkeys(values, (MASKED, "set"))
    text = repr(load()) + str(load())
    assert not [value for value in values.values() if value in text]


def test_every_setting_is_shown_with_its_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WS_ALLOWED_ORIGINS", "https://a.example, https://b.example,")
    rows = shown(load(api_port=1))
    assert [row[0] for row in rows] == [name.upper() for name in Settings.model_fields]
    assert all(meaning.endswith(".") for *_, meaning in rows)
    found = {name: (value, origin) for name, value, origin, _ in rows}
    assert found["WS_ALLOWED_ORIGINS"] == ("https://a.example,https://b.example", "set")
    assert found["API_PORT"] == ("1", "set")
    assert found["ENABLE_WEBTRANSPORT"] == ("true", "default")
    assert (
        found["JWT_SECRET_KEY"]
        == found["KAFKA_OPTIONS"]
        == found["CLICKHOUSE_PASSWORD"]
        == ("", "default")
    )


def test_the_data_folder_is_made_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEV_DATA_DIR", "~/mev-data")
    assert load().mev_data_dir == Path.home() / "mev-data"
    monkeypatch.setenv("MEV_DATA_DIR", "data")
    assert load().mev_data_dir == Path.cwd() / "data"


def test_overrides_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "9000")
    assert load(api_port=9001).api_port == 9001
    assert refusal(api_port="x").startswith("API_PORT: ")


def test_kafka_options_keep_their_types() -> None:
    settings = load(
        kafka_options=(
            '{"security.protocol": "SSL", "fetch.min.bytes": 1, "socket.keepalive.enable": true}'
        )
    )
    assert parse_kafka_options(settings.kafka_options) == {
        "security.protocol": "SSL",
        "fetch.min.bytes": 1,
        "socket.keepalive.enable": True,
    }
