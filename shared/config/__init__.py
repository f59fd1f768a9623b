"""Configuration: settings from YAML and the environment, errors, secret files and file checks."""
