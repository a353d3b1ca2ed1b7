"""What is kept: files in a folder or a bucket, checkpoints, and the files of a finished SAE."""
