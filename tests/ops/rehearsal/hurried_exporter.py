"""The exporter on the demo's clock: the minute between two looks at a key is a second, and so is the quota's."""

from services.exporter.probes import key_inspection

if __name__ == "__main__":
    key_inspection.MIN_INTERVAL /= 60  # type: ignore[misc]
    key_inspection.MAX_READS_PER_MINUTE *= 60  # type: ignore[misc]
    from services.exporter.__main__ import main  # which takes the two along

    main()
