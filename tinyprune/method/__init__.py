"""The method: choose the parts that stay, remove the others, repair and heal what stays; `prune` is its page."""
