"""Google Cloud KMS: everything that is specific to Google."""
