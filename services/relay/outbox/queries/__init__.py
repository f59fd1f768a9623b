"""Reads the history: lists, searches, timelines, the figures of a period and of its steps, the context of messages."""
