"""Whether a channel works: its checks, its test messages, its page."""
