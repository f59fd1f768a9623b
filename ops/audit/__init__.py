"""Audit logging of Cloud KMS: wish → state → changes → Google, and a probe that shows it works."""
