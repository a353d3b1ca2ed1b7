"""What trained SAEs have learned: what their latents fire on, and what they do."""
