"""What a model does when a direction is added to its activations."""
