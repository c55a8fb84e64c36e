"""Judges of edits behind one interface: what was done to an image, as scores and failure kinds."""
