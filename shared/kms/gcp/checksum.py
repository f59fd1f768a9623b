"""CRC32C as Cloud KMS uses it.

Settings and profile do not import this module: the relay reads them, and does not install the library.
"""

import google_crc32c


def compute_crc32c(data: bytes) -> int:
    """The checksum that goes into the `*_crc32c` fields; 0 is a value like any other."""
    return int(google_crc32c.value(data))
