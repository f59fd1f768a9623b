"""Silences that people request in Slack and in the console."""
