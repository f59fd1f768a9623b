"""Cloud KMS over gRPC with Google's own message types, and with faults: for tests, and for the demo.

A call walks `service → faults → key_methods | crypto_methods → store`, and its answer back through `faults`.
`emulator.start()` runs it all in process; `keypulse-emulator` runs it as a program.
"""
