"""Sample sets: an image, an instruction, and the box of the edit."""
