"""Image editors behind one interface: edit(image, instruction, seed) -> image."""
