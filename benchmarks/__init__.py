"""What the library's shortcuts cost and save; each module is one measurement."""
