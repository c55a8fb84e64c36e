"""From chapters to a book: notebooks, pages, the graph of steps, and what a profile needs."""
