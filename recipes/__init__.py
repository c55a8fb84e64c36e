"""How shipped weights and data were made; `abplib` imports nothing of it."""
