"""One module for each section of the paper: what it measures, as tidy frames."""
