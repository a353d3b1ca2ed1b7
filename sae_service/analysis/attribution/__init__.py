"""What each latent contributes to what a model says."""
