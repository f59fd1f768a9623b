"""Webhooks that were not accepted: shown, repaired, replayed."""
