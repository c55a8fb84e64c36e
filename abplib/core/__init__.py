"""What the rest stands on: errors, files, statistics, boxes, hub, training loop; no paper in it."""
