"""The configurations and secrets of compose.yaml at the root."""
