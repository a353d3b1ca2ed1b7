"""Where the files of a job are in the storage."""


def job_folder(job_id: str) -> str:
    """The key below which all files of a job are."""
    return f"jobs/{job_id}"


def log_folder(job_id: str) -> str:
    """The key below which the logs of its attempts are."""
    return f"{job_folder(job_id)}/logs"
