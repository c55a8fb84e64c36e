"""The mini world: scenes with exact ground truth, and the miniature models trained on them."""
