"""Where the results of a job that has attributed differences of logits are in its checkpoint."""

FOLDER = "attribution/"
RECORD = f"{FOLDER}attribution.json"
