"""HTTP, and only HTTP: requests in, records out. Nothing here imports torch."""
