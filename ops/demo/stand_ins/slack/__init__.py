"""A stand-in for Slack: one workspace with one app in it, its Web API, an incoming webhook and Socket Mode."""
