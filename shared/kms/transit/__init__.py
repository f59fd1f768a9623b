"""Transit, the secrets engine of OpenBao and HashiCorp Vault that encrypts: everything that is specific to it."""
