"""Cloud KMS over gRPC, with faults."""
