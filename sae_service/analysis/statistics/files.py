"""Where the results of a job that has measured a model are in its checkpoint."""

FOLDER = "statistics/"
RECORD, COLUMNS = f"{FOLDER}statistics.json", f"{FOLDER}columns.safetensors"
