"""Settings that must stand before JAX or a Hugging Face library is imported, and the demo's job made small."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import Postgres

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Most of the suite's time would go into compiling the same steps in one process after another.
if "PYTEST_XDIST_WORKER" not in os.environ:
    COMPILED = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

DEMO = Path(__file__).parents[1] / "sae_service" / "demo"


@pytest.fixture
def spec() -> dict[str, Any]:
    """Two small SAEs, 40 steps in five fills, a checkpoint every 6 steps."""
    optimizer = {"lr": 1e-3, "lr_warm_up": 0.1, "sparsity_warm_up": 0.2}
    return {
        "stream": {
            "model": {"name": str(DEMO / "model")},
            "dataset": {"path": str(DEMO / "text"), "held_out_split": "test"},
            "tokens": 40 * 256, "batch": 256, "buffer_rows": 8 * 256, "prompts": 4, "seed": 3,
        },
        "saes": [
            {
                "name": "a", "hook_name": "blocks.1.hook_resid_post", "optimizer": optimizer,
                "architecture": {"kind": "jumprelu", "d_sae": 256, "bandwidth": 0.05, "initial_threshold": 0.05},
            },
            {
                "name": "b", "hook_name": "blocks.2.hook_mlp_out", "optimizer": optimizer,
                "architecture": {"kind": "standard", "d_sae": 256, "l1_coefficient": 1.0},
            },
        ],
        "checkpoints": {"every_tokens": 6 * 256},
        "evaluation": {"tokens": 1024},
        "log_every": 5,
    }  # fmt: skip


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of an empty database on a PostgreSQL server of our own."""
    server = Postgres()
    yield server.url.replace("postgresql://", "postgresql+psycopg://")
    server.close()


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Small models of many families; see `tests.model_families`."""
    from tests.model_families import Families

    return Families(tmp_path_factory.mktemp("families"))
