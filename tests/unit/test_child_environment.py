"""What the training process is told of the service around it."""

from pathlib import Path

import pytest

from sae_service.settings import Settings, child_environment

SECRETS = {
    "SAE_SERVICE_DATABASE_URL": "postgresql://user:password@host/database", "SAE_SERVICE_API_KEY_SHA256": "[]",
    "SAE_SERVICE_LEASE_S": "60", "PGPASSWORD": "password", "WANDB_API_KEY": "key", "GOOGLE_APPLICATION_CREDENTIALS": "file",
    "AWS_SECRET_ACCESS_KEY": "a secret of the cloud", "AZURE_STORAGE_KEY": "a key of the cloud",
}  # fmt: skip


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_TOKEN", "needed to read the hub")
    monkeypatch.setenv("SAE_SERVICE_DATA_DIR", "here")


def test_the_training_process_has_no_address_of_a_database_and_no_keys(tmp_path: Path) -> None:
    found = child_environment(Settings(data_dir=tmp_path), None)
    assert not SECRETS.keys() & found.keys()
    assert (found["HF_TOKEN"], found["SAE_SERVICE_DATA_DIR"]) == ("needed to read the hub", "here")


def test_it_has_those_of_the_cloud_if_the_checkpoints_are_kept_there(tmp_path: Path) -> None:
    found = child_environment(Settings(data_dir=tmp_path, storage_url="s3://bucket/prefix"), None)
    assert found["AWS_SECRET_ACCESS_KEY"] == "a secret of the cloud"
    assert "SAE_SERVICE_DATABASE_URL" not in found
