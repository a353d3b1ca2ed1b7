"""The operating-system processes: the worker, the training process that it starts, and a server for one machine."""
