"""How well latents stand for known features, against values by hand."""

import numpy as np
import pytest

from sae_service.evaluation import feature_recovery


def test_a_latent_detects_the_feature_that_it_resembles() -> None:
    truth, learned = np.eye(2), np.array([[2.0, 0.1], [0.0, 1.0]])
    present = np.array([[1, 0], [1, 1], [0, 1], [0, 1]], bool)
    fires = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], bool)
    wanted = present[:, feature_recovery.best_features(truth, learned)]
    found = feature_recovery.detection(*((rows * 1.0).sum(axis=0) for rows in (wanted & fires, fires, wanted)))
    # The first latent fires twice, once rightly, of two occurrences; the second once, rightly, of three.
    assert found["precision"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["recall"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["f1"] == pytest.approx((1 / 2 + 2 * (1 / 3) / (4 / 3)) / 2)
