"""Operations at both ends of a model, where tokens become vectors and vectors a loss."""
