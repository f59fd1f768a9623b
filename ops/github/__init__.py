"""What the workflows and the action ask of GitHub."""
