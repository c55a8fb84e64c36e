"""Human steps: drawing and verifying boxes, judging boxes and edits."""
