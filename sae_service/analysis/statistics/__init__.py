"""What the activations, the attention and the weights of a model are like: one pass over text, and what it says."""
