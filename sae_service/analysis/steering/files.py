"""Where the results of a job that has steered a model are in its checkpoint."""

FOLDER = "steering/"
RECORD, COLUMNS = f"{FOLDER}steering.json", f"{FOLDER}columns.safetensors"
