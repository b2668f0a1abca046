"""Tests of backup and restore on small data folders."""

import json
from pathlib import Path

import pytest

from mev.backup.make import make_backup
from mev.backup.manifest import BackupDamagedError, PassphraseError
from mev.backup.restore import restore_backup
from mev.core.errors import ConflictError, NotFoundError
from mev.settings import Settings, load
from mev.store.folder import RESTORING, DataFolder

PASSPHRASE = "correct horse battery"
SECRET = "a-secret-of-this-site"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    data = tmp_path / "data"
    (data / "store" / "empty").mkdir(parents=True, mode=0o700)
    (data / "store" / "part.bin").write_bytes(b"rows" * 1000)
    (data / "tables").symlink_to("store")
    (data / "jwt-secret-key").write_text(SECRET)
    (data / "control").mkdir()
    (data / "control" / "root-key").write_text(SECRET)
    (data / "control" / ".root-key.4711").write_text(SECRET)  # of a killed process
    (data / "agents" / "a1").mkdir(parents=True)
    (data / "agents" / "a1" / "counter").write_text("7")
    (data / "login.json").write_text("token")
    return load(mev_data_dir=data)


@pytest.fixture
def saved(settings: Settings, tmp_path: Path) -> Path:
    """Return a backup whose data folder is gone."""
    target = tmp_path / "saved"
    make_backup(settings, target, PASSPHRASE)
    settings.mev_data_dir.rename(tmp_path / "lost")
    return target


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_restored_folder_is_as_it_was(saved: Path, settings: Settings, tmp_path: Path) -> None:
    manifest, _ = restore_backup(settings, saved, PASSPHRASE)
    data, lost = settings.mev_data_dir, files(tmp_path / "lost")
    kept = {name for name in lost if not name.startswith(("agents", "lock", "login"))}
    assert files(data) == {name: lost[name] for name in kept}
    assert (data / "store" / "empty").is_dir()
    assert (data / "tables").readlink() == Path("store")
    assert data.stat().st_mode & 0o077 == 0
    assert manifest.keys == [
        "data/control/.root-key.4711",
        "data/control/root-key",
        "data/jwt-secret-key",
    ]
    assert not (data / RESTORING).exists()
    folder = DataFolder(data)
    folder.acquire()
    folder.release()


def test_keys_are_in_no_file_of_the_backup(saved: Path) -> None:
    assert all(SECRET.encode() not in content for content in files(saved).values())
    assert saved.stat().st_mode & 0o077 == 0


def test_wrong_passphrase_restores_nothing(saved: Path, settings: Settings) -> None:
    with pytest.raises(PassphraseError):
        restore_backup(settings, saved, "another passphrase")
    assert not settings.mev_data_dir.exists()


def change_file(saved: Path) -> None:
    path = saved / "files/data/store/part.bin"
    path.write_bytes(b"Rows" + path.read_bytes()[4:])


def remove_file(saved: Path) -> None:
    (saved / "files/data/store/part.bin").unlink()


def damage_keys(saved: Path) -> None:
    (saved / "keys.json").write_bytes(b"{}")


def name_outside(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_bytes())
    manifest["files"]["data/../../x"] = manifest["files"].pop("data/store/part.bin")
    (saved / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [change_file, remove_file, damage_keys, name_outside])
def test_damaged_backup_restores_nothing(damage: object, saved: Path, settings: Settings) -> None:
    assert callable(damage)
    damage(saved)
    with pytest.raises(BackupDamagedError):
        restore_backup(settings, saved, PASSPHRASE)
    assert not settings.mev_data_dir.exists()


def test_changed_manifest_is_noticed_by_the_passphrase(saved: Path, settings: Settings) -> None:
    path = saved / "files/data/store/part.bin"
    path.write_bytes(b"other")
    manifest = json.loads((saved / "manifest.json").read_bytes())
    del manifest["files"]["data/store/part.bin"]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PassphraseError):
        restore_backup(settings, saved, PASSPHRASE)


def test_backup_of_a_newer_version_is_refused(saved: Path, settings: Settings) -> None:
    manifest = json.loads((saved / "manifest.json").read_bytes())
    manifest["version"] = "999.0.0"
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConflictError) as refused:
        restore_backup(settings, saved, PASSPHRASE)
    assert refused.value.code == "backup_too_new"


def test_folder_with_data_is_not_overwritten(saved: Path, settings: Settings) -> None:
    settings.mev_data_dir.mkdir()
    restore_backup(settings, saved, PASSPHRASE)
    before = files(settings.mev_data_dir)
    with pytest.raises(ConflictError) as refused:
        restore_backup(settings, saved, PASSPHRASE)
    assert refused.value.code == "restore_target_not_empty"
    assert files(settings.mev_data_dir) == before


def test_system_does_not_start_on_a_restore_that_was_interrupted(
    saved: Path, settings: Settings
) -> None:
    data = settings.mev_data_dir
    (data / RESTORING).mkdir(parents=True)
    (data / RESTORING / "half").write_text("of a file")
    with pytest.raises(ConflictError) as refused:
        DataFolder(data).acquire()
    assert refused.value.code == "restore_incomplete"
    restore_backup(settings, saved, PASSPHRASE)
    assert not (data / "half").exists()
    assert (data / "store" / "part.bin").exists()


def test_existing_empty_folder_is_kept(saved: Path, settings: Settings) -> None:
    data = settings.mev_data_dir
    data.mkdir()
    before = data.stat().st_ino
    restore_backup(settings, saved, PASSPHRASE)
    assert data.stat().st_ino == before


def test_models_elsewhere_are_saved_too(settings: Settings, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "m.json").write_text("{}")
    settings = load(mev_data_dir=settings.mev_data_dir, model_dir=models)
    make_backup(settings, tmp_path / "saved", PASSPHRASE)
    for folder in (models, settings.mev_data_dir):
        folder.rename(tmp_path / f"lost-{folder.name}")
    without = load(mev_data_dir=settings.mev_data_dir)
    with pytest.raises(ConflictError, match="MODEL_DIR"):
        restore_backup(without, tmp_path / "saved", PASSPHRASE)
    restore_backup(settings, tmp_path / "saved", PASSPHRASE)
    assert (models / "m.json").read_text() == "{}"


def test_backup_needs_a_stopped_system_and_a_new_folder(settings: Settings, tmp_path: Path) -> None:
    running = DataFolder(settings.mev_data_dir)
    running.acquire()
    try:
        with pytest.raises(ConflictError) as refused:
            make_backup(settings, tmp_path / "saved", PASSPHRASE)
        assert refused.value.code == "data_folder_in_use"
    finally:
        running.release()
    assert not (tmp_path / "saved").exists()
    with pytest.raises(ConflictError) as refused:
        make_backup(settings, tmp_path, PASSPHRASE)
    assert refused.value.code == "backup_exists"
    with pytest.raises(NotFoundError):
        make_backup(load(mev_data_dir=tmp_path / "none"), tmp_path / "saved", PASSPHRASE)
