"""The condition encoder: a VLM read in one forward pass, and the same VLM allowed to answer."""
