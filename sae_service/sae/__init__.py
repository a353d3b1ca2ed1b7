"""What an SAE is: the contract of an architecture, the public form, and what architectures share."""
