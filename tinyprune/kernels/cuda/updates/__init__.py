"""Operations on parameters and their gradients, after backward: norms and updates."""
