"""Operations on latents: which of them are active, and what comes of them."""
