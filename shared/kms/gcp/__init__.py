"""TODO shared/kms/gcp."""
