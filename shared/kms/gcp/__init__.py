"""Google Cloud KMS: all that is Google's stands here."""
