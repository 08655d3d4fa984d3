"""The Transformer: parameters, layers, forward and backward, counting, generating."""
