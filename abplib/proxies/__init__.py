"""The proxies: Q-Formers that read hidden states, their training side by side, and their
attention."""
