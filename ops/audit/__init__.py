"""Audit logging of Cloud KMS: desired state → current state → changes at Google, and a probe that verifies it."""
