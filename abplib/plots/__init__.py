"""The book's figures: one function each, tidy data in, a matplotlib figure out."""
