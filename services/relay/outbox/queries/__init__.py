"""What only reads: lists, searches, timelines, the figures of a period, and the context of messages."""
