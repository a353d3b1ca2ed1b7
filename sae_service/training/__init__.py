"""From rows of activations to an SAE."""
