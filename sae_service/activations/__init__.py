"""From text to shuffled rows of activations."""
