"""Buttons in Slack, by Socket Mode: the relay connects to Slack, and nothing listens to the internet."""
