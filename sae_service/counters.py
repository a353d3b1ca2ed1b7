"""What a process counts of itself, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

ATTEMPTS = Counter(
    "sae_attempts_ended", "Attempts by how they ended here: succeeded, failed, crashed, preempted, cancelled, paused.", ["end"],
)  # fmt: skip
TOKENS_PER_SECOND = Gauge("sae_worker_tokens_per_second", "Rows of activations that the job in hand is trained on in a second.")
CHECKPOINT_SECONDS = Histogram(
    "sae_checkpoint_seconds", "How long the files of a checkpoint took to be written.",
    buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
)  # fmt: skip
