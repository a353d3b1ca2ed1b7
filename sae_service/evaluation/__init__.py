"""What an SAE is worth: on held-out text, on synthetic rows whose features are known, and of SAEs in folders."""
