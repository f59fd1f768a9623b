"""The life of a process: command line, start, hot reload, shutdown, logs, memory, concurrency."""
