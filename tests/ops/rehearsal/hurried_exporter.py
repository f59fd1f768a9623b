"""The exporter on the demo's clock: the minute between two looks at a key is a second, and so is the quota's."""

from services.exporter import lifecycle

if __name__ == "__main__":
    lifecycle.MIN_INTERVAL /= 60  # type: ignore[misc]
    lifecycle.MAX_READS_PER_MINUTE *= 60  # type: ignore[misc]
    from services.exporter.__main__ import main  # which takes the two along

    main()
